"""What the spike-and-slab model computes of n points: its posterior, tile by tile, and the parameters as it needs them.

Shapes as in gsc.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Spread:
    """A second moment of n points: on the diagonal for every atom, and between candidates."""

    diagonal: Tensor
    """[n, H]."""
    between: Tensor
    """[n, P'] over pairs i ≤ j of candidates; those with i = j are part of the diagonal already."""


@dataclass(frozen=True, slots=True)
class Posterior:
    """Truncated posterior of n points; moments are empty where only joints were wanted."""

    candidates: Tensor
    """[n, H'] int64."""
    log_z: Tensor
    """[n] float64, log Σ of the tempered joints (constants of the likelihood left out): ranks points for the cut."""
    log_evidence: Tensor
    """[n] float64, log Σ p(s, y) over the states."""
    s: Tensor
    """<s> [n, H]."""
    sz: Tensor
    """<s∘z> [n, H]."""
    zz: Spread
    """<(s∘z)(s∘z)ᵀ>."""
    imputed: Tensor
    """<t> [n, H], for a full Ψ."""
    spread: Spread | None
    """<ttᵀ - K>, for a full Ψ."""
    weight: Tensor
    """[n, 1+H+M] probabilities of the states; [n, 0] where they were not asked for."""


@dataclass(frozen=True)
class Theta:
    """Parameters in the dtype of the batch, the noise's inverse covariance Σ⁻¹ applied."""

    scaled: Tensor
    """Σ⁻¹W [D, H]."""
    gram: Tensor
    """WᵀΣ⁻¹W [H, H]."""
    root: Tensor
    """Σ^-½ W [D, H]; [0, H] unless entries may be missing."""
    logit: Tensor
    mu: Tensor
    psi: Tensor
    """[H] or [H, H]."""
    variance: Tensor
    """[H] diagonal of Ψ."""
    log_zero: float
    """Σ_h log(1-π_h)."""


def stack(parts: list[Posterior]) -> Posterior:
    """Tiles one below the other."""
    cat = lambda get: torch.cat([get(p) for p in parts])  # noqa: E731
    full = parts[0].spread is not None
    return Posterior(
        candidates=cat(lambda p: p.candidates),
        log_z=cat(lambda p: p.log_z),
        log_evidence=cat(lambda p: p.log_evidence),
        s=cat(lambda p: p.s),
        sz=cat(lambda p: p.sz),
        zz=Spread(cat(lambda p: p.zz.diagonal), cat(lambda p: p.zz.between)),
        imputed=cat(lambda p: p.imputed),
        spread=Spread(cat(lambda p: p.spread.diagonal), cat(lambda p: p.spread.between)) if full else None,
        weight=cat(lambda p: p.weight),
    )


def scatter(diagonal: Tensor, between: Tensor, chosen: Tensor) -> Tensor:
    """Σ over points of a `Spread`, [H, H] float64."""
    atoms, candidates = diagonal.shape[1], chosen.shape[1]
    first, second = torch.triu_indices(candidates, candidates, device=chosen.device)
    apart = first != second
    place = chosen[:, first[apart]] * atoms + chosen[:, second[apart]]
    flat = torch.zeros(atoms**2, dtype=torch.float64, device=chosen.device)
    flat.index_add_(0, place.reshape(-1), between[:, apart].reshape(-1).double())
    half = flat.reshape(atoms, atoms)
    return half + half.T + torch.diag(diagonal.sum(0, dtype=torch.float64))
