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
