"""Gaussian noise with one variance, one per dimension, or a covariance: its log-density terms and its M-step.

Parameters: `sigma` [] or [D] (standard deviations), or `noise_covariance` [D, D].
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Params, Probe

COVARIANCE = "noise_covariance"
LEAST_SHARE = 1e-6


def start(kind: str, probe: Probe, spread: Tensor) -> Params:
    """Noise as strong as the data's mean spread."""
    if kind == "scalar":
        return {"sigma": spread}
    if kind == "diagonal":
        return {"sigma": spread.repeat(probe.dim)}
    return {COVARIANCE: spread.square() * torch.eye(probe.dim, dtype=torch.float64)}


def precise(params: Params, weights: Tensor) -> Tensor:
    """Σ⁻¹ W, [D, H] float64."""
    if COVARIANCE in params:
        return torch.cholesky_solve(weights, torch.linalg.cholesky(params[COVARIANCE]))
    return weights / params["sigma"].square().reshape(-1, 1)


def squares(params: Params, x: Tensor) -> Tensor:
    """yᵀΣ⁻¹y of every row, [n] float64."""
    if COVARIANCE in params:
        factor = torch.linalg.cholesky(params[COVARIANCE])
        return torch.linalg.solve_triangular(factor, x.double().T, upper=False).square().sum(0)
    return (x.double() / params["sigma"]).square().sum(1)


def roots(params: Params, weights: Tensor) -> Tensor:
    """Σ^-½ W, [D, H] float64, for noise that is independent between dimensions."""
    return weights / params["sigma"].reshape(-1, 1)


def log_det_seen(params: Params, seen: Tensor) -> Tensor:
    """log|Σ| over the observed dimensions [n] of `seen` [n, D], for such noise."""
    return 2 * (seen.double() @ params["sigma"].log().expand(seen.shape[1]))


def of_missing(kind: str, params: Params, weights: Tensor, ys: Tensor, gone: Tensor) -> Tensor:
    """What `second_moment` lacks: Σ E[y²] of the missing entries, [] or [D], from their E[y cᵀ] `ys` [D, H]."""
    count = gone.sum(0, dtype=torch.float64)
    square = (ys * weights).sum(1) + params["sigma"].square() * count
    return square if kind == "diagonal" else square.sum()


def log_det(params: Params, dim: int) -> float:
    """log|Σ|."""
    if COVARIANCE in params:
        return 2 * float(torch.linalg.cholesky(params[COVARIANCE]).diagonal().log().sum())
    return 2 * float(params["sigma"].log().expand(dim).sum())


def second_moment(kind: str, x: Tensor) -> Tensor:
    """Σ ‖y‖² [], Σ y² [D] or Σ y yᵀ [D, D], float64."""
    if kind == "full":
        return (x.T @ x).double()
    square = x.double().square().sum(0)
    return square if kind == "diagonal" else square.sum()


def fit(kind: str, weights: Tensor, ys: Tensor, zz: Tensor, yy: Tensor, used: Tensor) -> Params:
    """The noise that explains what W leaves, from statistics alone; at least 1e-6 of the data's own variance."""
    if kind == "full":
        cross = weights @ ys.T
        cov = (yy - cross - cross.T + weights @ zz @ weights.T) / used
        values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
        least = max(LEAST_SHARE * float(yy.diagonal().mean() / used), 1e-30)
        return {COVARIANCE: (vectors * values.clamp(min=least)) @ vectors.T}
    left = ((weights @ zz - 2 * ys) * weights).sum(1)
    residual = (yy + left) if kind == "diagonal" else (yy + left.sum()) / len(left)
    mean = yy / used if kind == "diagonal" else yy / used / len(left)
    return {"sigma": torch.maximum(residual / used, LEAST_SHARE * mean).clamp(min=1e-30).sqrt()}


def level(params: Params) -> float:
    """Root mean square of the noise's standard deviations."""
    if COVARIANCE in params:
        return float(params[COVARIANCE].diagonal().mean().sqrt())
    return float(params["sigma"].square().mean().sqrt())
