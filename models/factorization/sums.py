"""Sufficient statistics of a dictionary under fixed codes, and what follows from them without the data.

For rows x ≈ Dᵀ a (atoms are rows of D, [H, D]) the sums A = Σ a aᵀ, B = Σ a xᵀ, E = Σ ‖x‖² give the squared error of
any dictionary under the same codes: E - 2 tr(D Bᵀ) + tr(A D Dᵀ).

Shapes: n rows, D dimensions, H atoms, k entries of a code, S slots for candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import Codes, Stats
from ..kernels import code_cross, code_moments


@dataclass(frozen=True, slots=True)
class CodingSums(Stats):
    """Sums over rows, float64, that every model here needs."""

    counts: Tensor
    """[H] rows that use an atom."""
    energy: Tensor
    """Σ ‖x‖²."""
    error: Tensor
    """Σ ‖x - Dᵀ a‖²."""
    magnitude: Tensor
    """Σ ‖a‖₁."""
    rows: Tensor
    """Rows."""
    errors: Tensor
    """[BINS] histogram of the rows' relative errors (see `replacement.py`); empty where no atoms are replaced."""
    candidates: Tensor
    """[S, D+2] badly represented rows in slots, their relative errors and their counts; empty likewise."""


@dataclass(frozen=True, slots=True)
class MomentSums(CodingSums):
    """With the moments that give any dictionary's error."""

    moments: Tensor
    """A = Σ a aᵀ [H, H]."""
    cross: Tensor
    """B = Σ a xᵀ [H, D]."""


@dataclass(frozen=True, slots=True)
class ResidualSums(CodingSums):
    """With what one simultaneous step of all atoms needs: H D numbers instead of H (H + D)."""

    power: Tensor
    """h = Σ a∘a [H]."""
    pull: Tensor
    """C = Σ a (x - Dᵀ a)ᵀ [H, D]."""


def decode(codes: Codes, atoms: Tensor) -> Tensor:
    """The rows [n, D] that `codes` stand for under `atoms` [H, D], in the codes' dtype."""
    atoms = atoms.to(codes.values.dtype)
    if codes.indices.shape[1] == 0:
        return atoms.new_zeros(codes.indices.shape[0], atoms.shape[1])
    if dense_is_better(codes, atoms.shape[0]):
        return codes.dense(atoms.shape[0]) @ atoms
    return F.embedding_bag(codes.indices.clamp(min=0), atoms, per_sample_weights=codes.values, mode="sum")


def dense_is_better(codes: Codes, atoms: int) -> bool:
    """Whether matrix products beat gathering for codes of this width."""
    return 4 * codes.indices.shape[1] >= atoms


def moments_of(codes: Codes, atoms: int) -> Tensor:
    """A = Σ a aᵀ, [H, H] float64."""
    if dense_is_better(codes, atoms):
        dense = codes.dense(atoms).double()
        return dense.T @ dense
    return code_moments(codes.indices, codes.values, atoms)


def cross_of(codes: Codes, x: Tensor, atoms: int) -> Tensor:
    """B = Σ a xᵀ, [H, D] float64."""
    if dense_is_better(codes, atoms):
        return codes.dense(atoms).double().T @ x.double()
    return code_cross(x, codes.indices, codes.values, atoms)


def counts_of(codes: Codes, atoms: int) -> Tensor:
    """[H] float64: rows in which an atom has a non-zero entry."""
    used = codes.indices[codes.values != 0].long()
    return torch.bincount(used, minlength=atoms).double()


def power_of(codes: Codes, atoms: int) -> Tensor:
    """h = Σ a∘a, [H] float64."""
    out = torch.zeros(atoms, dtype=torch.float64, device=codes.values.device)
    return out.index_add_(0, codes.indices.clamp(min=0).flatten().long(), codes.values.double().square().flatten())
