"""Slow, obvious, float64 references that enumerate every state."""

from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def bsc_log_joints(y: Array, weights: Array, pi: float, sigma: float) -> tuple[Array, Array]:
    """All 2^H states [2^H, H] and log p(s, y_n) [N, 2^H], term by term."""
    atoms, dim = weights.shape[1], weights.shape[0]
    states = np.array(list(product([0.0, 1.0], repeat=atoms)))
    joints = np.empty((len(y), len(states)))
    for n, row in enumerate(y):
        for m, s in enumerate(states):
            prior = sum(np.log(pi) if on else np.log1p(-pi) for on in s)
            error = row - weights @ s
            joints[n, m] = prior - dim / 2 * np.log(2 * np.pi * sigma**2) - error @ error / (2 * sigma**2)
    return states, joints


def log_sum(joints: Array) -> Array:
    """log Σ exp over the last axis."""
    top = joints.max(-1, keepdims=True)
    return top[..., 0] + np.log(np.exp(joints - top).sum(-1))


def discrete_log_joints(
    y: Array, weights: Array, values: tuple[float, ...], prior: Array, sigma: float
) -> tuple[Array, Array]:
    """All K^H states and log p(s, y_n) for latents with `prior` [H, K] over `values`, term by term."""
    atoms, dim = weights.shape[1], weights.shape[0]
    choices = list(product(range(len(values)), repeat=atoms))
    states = np.array([[values[k] for k in choice] for choice in choices])
    joints = np.empty((len(y), len(states)))
    for m, (s, choice) in enumerate(zip(states, choices)):
        log_prior = sum(np.log(prior[h, k]) for h, k in enumerate(choice))
        for n, row in enumerate(y):
            error = row - weights @ s
            joints[n, m] = log_prior - dim / 2 * np.log(2 * np.pi * sigma**2) - error @ error / (2 * sigma**2)
    return states, joints


def gsc_posterior(
    y: Array, weights: Array, pi: Array, mu: Array, psi: Array, noise: Array
) -> tuple[Array, Array, Array, Array]:
    """Spike-and-slab: all 2^H states, log p(s, y_n) [N, 2^H], E[z | s, y_n] [N, 2^H, H] and Cov[z | s] [2^H, H, H].

    The whole of z is latent, also where s is 0; densities and conditionals as in a textbook, in D dimensions.
    """
    atoms = weights.shape[1]
    states = np.array(list(product([0.0, 1.0], repeat=atoms)))
    joints, means, covs = np.empty((len(y), len(states))), np.empty((len(y), len(states), atoms)), []
    for m, s in enumerate(states):
        loaded = weights * s
        cov = loaded @ psi @ loaded.T + noise
        error = y - loaded @ mu
        gain = psi @ loaded.T @ np.linalg.inv(cov)
        log_prior = (s * np.log(pi) + (1 - s) * np.log1p(-pi)).sum()
        quadratic = np.einsum("nd,de,ne->n", error, np.linalg.inv(cov), error)
        joints[:, m] = log_prior - 0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * cov)[1])
        means[:, m] = mu + error @ gain.T
        covs.append(psi - gain @ loaded @ psi)
    return states, joints, means, np.array(covs)


def superpose(states: Array, weights: Array, *, signed: bool, rho: float | None) -> tuple[Array, Array]:
    """ȳ [2^H, D] of every state and its shares A [2^H, D, H]; `rho` None: the maximum itself, ties split evenly."""
    dim, atoms = weights.shape
    predictions, shares = np.zeros((len(states), dim)), np.zeros((len(states), dim, atoms))
    for m, s in enumerate(states):
        for d in range(dim):
            on = [h for h in range(atoms) if s[h]]
            if not on:
                continue
            if rho is None:
                size = [abs(weights[d, h]) if signed else weights[d, h] for h in on]
                best = [h for h, v in zip(on, size) if v == max(size)]
                predictions[m, d] = weights[d, best[0]]
                shares[m, d, best] = 1 / len(best)
            else:
                total = sum(np.sign(weights[d, h]) * abs(weights[d, h]) ** rho for h in on)
                predictions[m, d] = np.sign(total) * abs(total) ** (1 / rho)
                for h in on:
                    excess = np.log(abs(predictions[m, d])) - np.log(abs(weights[d, h]))
                    shares[m, d, h] = np.exp(-(rho - 1) * max(excess, 0.0))
    return predictions, shares


def maximal_log_joints(
    y: Array, weights: Array, pi: float, sigma: float, *, signed: bool, rho: float | None
) -> tuple[Array, Array, Array, Array]:
    """All 2^H states, log p(s, y_n) [N, 2^H], their squared errors [N, 2^H] and shares [2^H, D, H]."""
    dim, atoms = weights.shape
    states = np.array(list(product([0.0, 1.0], repeat=atoms)))
    predictions, shares = superpose(states, weights, signed=signed, rho=rho)
    errors = ((y[:, None] - predictions) ** 2).sum(2)
    log_prior = (states * np.log(pi) + (1 - states) * np.log1p(-pi)).sum(1)
    return states, log_prior - dim / 2 * np.log(2 * np.pi * sigma**2) - errors / (2 * sigma**2), errors, shares


def every_output(states: Array, joints: Array, coefficients: Array, predictions: Array) -> dict[str, Array]:
    """What a full posterior says about every point: from all states [S, H], log p(s, y_n) [N, S], the coefficients
    E[c | s, y_n] [N, S, H] (0 where an atom is off) and the predictions E[y | s] [N, S, D]."""
    evidence = log_sum(joints)
    q = np.exp(joints - evidence[:, None])
    return {
        "probability": q,
        "mean": np.einsum("ns,nsh->nh", q, coefficients),
        "active": q @ (states != 0),
        "reconstruction": np.einsum("ns,nsd->nd", q, predictions),
        "log_likelihood": evidence,
        "entropy": -(q * np.log(np.maximum(q, 1e-300))).sum(1),
        "order": np.argsort(-q, axis=1, kind="stable"),
    }
