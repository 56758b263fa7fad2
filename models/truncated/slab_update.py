"""The exact M-step of the slab of spike-and-slab sparse coding (`gsc`): μ and Ψ, and the scale of the atoms.

Sheikh, Shelton, Lücke: A truncated EM approach for spike-and-slab sparse coding, JMLR 15, 2014.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..base import Params

if TYPE_CHECKING:
    from .gsc import GSCStats

RARE = 1e-8
LEAST_VARIANCE = 1e-6


def diagonal(params: Params, stats: GSCStats, fixed: tuple[str, ...]) -> Params:
    """μ and ψ [H] as mean and variance of active coefficients; those of atoms that were hardly active stay."""
    active = stats.s.clamp(min=1e-300)
    mean, square = stats.sz / active, stats.zz.diagonal() / active
    # About the mean that is kept, where it is fixed.
    center = params["mu"] if "mu" in fixed else mean
    spread = square - 2 * center * mean + center.square()
    variance = torch.maximum(spread, LEAST_VARIANCE * square).clamp(min=1e-30)
    rare = stats.s < RARE * stats.used
    return {"mu": torch.where(rare, params["mu"], mean), "psi": torch.where(rare, params["psi"], variance)}


def full(params: Params, stats: GSCStats, fixed: tuple[str, ...]) -> Params:
    """μ [H] and Ψ [H, H] as mean and covariance of all of z, inactive coefficients inferred from the active ones."""
    psi = params["psi"]
    shift = psi @ stats.imputed / stats.used * ("mu" not in fixed)
    cov = psi + psi @ stats.spread @ psi / stats.used - torch.outer(shift, shift)
    # Floors apply to the correlations, so that they do not depend on the scale of an atom.
    deviation = torch.maximum(cov.diagonal(), LEAST_VARIANCE * psi.diagonal()).clamp(min=1e-30).sqrt()
    scale = torch.outer(deviation, deviation)
    values, vectors = torch.linalg.eigh((cov + cov.T) / (2 * scale))
    return {"mu": params["mu"] + shift, "psi": (vectors * values.clamp(min=LEAST_VARIANCE)) @ vectors.T * scale}


def renormalised(params: Params) -> Params:
    """The same model with atoms of norm 1, their length moved into μ and Ψ."""
    norm = params["W"].norm(dim=0)
    norm = torch.where(norm > 1e-12 * norm.max(), norm, torch.ones_like(norm))
    scale = torch.outer(norm, norm) if params["psi"].ndim == 2 else norm.square()
    return {**params, "W": params["W"] / norm, "mu": params["mu"] * norm, "psi": params["psi"] * scale}
