"""A Bernoulli prior cut off at γ active atoms: its mass, its mean, and the π that explains an observed mean.

Lücke & Eggert, JMLR 11, 2010: with A(π) = P(|s| ≤ γ) and B(π) = Σ_{g≤γ} g P(|s| = g), the stationary point of the
truncated model is B(π)/A(π) = mean number of active atoms. With a prior per atom, |s| is Poisson-binomial, and the
atoms' observed frequencies are raised by a common shift of their logits.
"""

from __future__ import annotations

from math import exp, lgamma, log, log1p

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LOWEST = 1e-6


def mass_and_mean(pi: float, atoms: int, active: int) -> tuple[float, float]:
    """(A, B) for prior probability π, H atoms and at most γ active ones."""
    logs = [
        lgamma(atoms + 1) - lgamma(g + 1) - lgamma(atoms - g + 1) + g * log(pi) + (atoms - g) * log1p(-pi)
        for g in range(min(active, atoms) + 1)
    ]
    terms = [exp(v) for v in logs]
    return sum(terms), sum(g * t for g, t in enumerate(terms))


def mass(pi: Tensor, atoms: int, active: int) -> float:
    """A for one prior probability [] or one per atom [H]."""
    if pi.ndim == 0:
        return mass_and_mean(float(pi), atoms, active)[0]
    return float(_sizes(_array(pi)[:, None], active).sum())


def truncated_pi(mean: float, atoms: int, active: int) -> float:
    """π with B(π)/A(π) = `mean`, by bisection (the left side rises from 0 to γ)."""
    if active >= atoms:
        return min(max(mean / atoms, LOWEST), 1 - LOWEST)
    low, high = LOWEST, 1 - LOWEST
    for _ in range(80):
        middle = 0.5 * (low + high)
        mass, first = mass_and_mean(middle, atoms, active)
        # For π near 1 both sums underflow; their ratio is γ there.
        ratio = first / mass if mass > 0 else float(active)
        low, high = (middle, high) if ratio < mean else (low, middle)
    return 0.5 * (low + high)


def truncated_pis(means: Tensor, active: int) -> Tensor:
    """π [H] whose logits are those of `means` [H] plus one number, so that E[|s| given |s| ≤ γ] is their sum."""
    observed = np.clip(_array(means), LOWEST, 1 - LOWEST)
    if active >= len(observed):
        return torch.from_numpy(observed).to(means.device)
    logits = np.log(observed) - np.log1p(-observed)
    low, high = 0.0, 40.0
    for _ in range(6):
        shifts = np.linspace(low, high, 33)
        sizes = _sizes(1 / (1 + np.exp(-(logits[:, None] + shifts))), active)
        total = sizes.sum(0)
        mean = (np.arange(active + 1)[:, None] * sizes).sum(0) / np.maximum(total, 1e-300)
        below = int(((mean < observed.sum()) & (total > 1e-300)).sum())
        low, high = shifts[max(below - 1, 0)], shifts[min(below, 32)]
    pi = 1 / (1 + np.exp(-(logits + 0.5 * (low + high))))
    return torch.from_numpy(np.clip(pi, LOWEST, 1 - LOWEST)).to(means.device)


def _sizes(pi: NDArray[np.float64], active: int) -> NDArray[np.float64]:
    """P(|s| = g) for g = 0 … γ, [γ+1, R], of independent atoms with probabilities [H, R]."""
    out = np.zeros((active + 1, pi.shape[1]))
    out[0] = 1
    for p in pi:
        raised = out[:-1] * p
        out *= 1 - p
        out[1:] += raised
    return out


def _array(pi: Tensor) -> NDArray[np.float64]:
    return pi.detach().cpu().double().numpy()
