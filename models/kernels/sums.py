"""Sums over sparse codes, and the update of a block of atoms in turn.

A code of n rows has at most k entries each: `indices` [n, k] int32, -1 for none, and `values` [n, k].
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import native

Length = Literal["unit", "ball", "any"]
LENGTHS = ("unit", "ball", "any")


def code_moments(indices: Tensor, values: Tensor, atoms: int) -> Tensor:
    """Σ a aᵀ over the rows, [H, H] float64, for H = `atoms`."""
    n, k = values.shape
    out = torch.zeros(atoms, atoms, dtype=torch.float64, device=values.device)
    if native.usable(values):
        native.call("code_moments", values.contiguous(), indices.contiguous(), n, k, atoms, out)
        return out
    wide, at = values.double(), indices.long()
    # Entries that are none have value 0 and may count for atom 0.
    place = (at[:, :, None] * atoms + at[:, None, :]).masked_fill_((at[:, :, None] < 0) | (at[:, None, :] < 0), 0)
    wide = wide.masked_fill(at < 0, 0)
    out.view(-1).index_add_(0, place.flatten(), (wide[:, :, None] * wide[:, None, :]).flatten())
    return out


def code_cross(x: Tensor, indices: Tensor, values: Tensor, atoms: int) -> Tensor:
    """Σ a xᵀ over the rows `x` [n, D], [H, D] float64, for H = `atoms`."""
    n, k = values.shape
    out = torch.zeros(atoms, x.shape[1], dtype=torch.float64, device=x.device)
    if native.usable(x, values) and x.dtype == values.dtype:
        parts = x.contiguous(), indices.contiguous(), values.contiguous()
        native.call("code_cross", *parts, n, x.shape[1], k, out)
        return out
    wide = x.double()
    for at, value in zip(indices.T.long(), values.T.double(), strict=True):
        used = at >= 0
        out.index_add_(0, at[used], value[used, None] * wide[used])
    return out


def sweep_block(
    atoms: Tensor, moments: Tensor, residual: Tensor, *, length: Length, nonnegative: bool, least: float
) -> None:
    """Update the atoms of a block one after the other, in place.

    Atom j becomes u = d_j + residual_j / moments_jj, clipped at 0 if `nonnegative`, then brought to its length. Atoms
    with moments_jj <= `least` stay, and those that would become 0 unless they may have any length.

    Args:
        atoms: [b, D] float64, contiguous; holds the result.
        moments: [b, b] float64, contiguous.
        residual: [b, D] float64, contiguous: Σ a_j (x - D a)ᵀ before; overwritten.
        length: "unit": u / |u|; "ball": u / max(1, |u|); "any": u.
        nonnegative: Whether negative entries are cut to 0.
        least: Of an atom's weight.
    """
    if native.usable(atoms, moments, residual):
        sizes = atoms.shape[0], atoms.shape[1]
        native.call(
            "sweep_block", atoms, moments, residual, *sizes, LENGTHS.index(length), int(nonnegative), float(least)
        )
        return
    for j in range(atoms.shape[0]):
        if not float(moments[j, j]) > least:
            continue
        new = atoms[j] + residual[j] / moments[j, j]
        new = new.clamp(min=0) if nonnegative else new
        norm = float(torch.linalg.vector_norm(new))
        if length != "any":
            if not norm > 1e-12:
                continue
            new = new if length == "ball" and norm <= 1 else new / norm
        residual[j + 1 :] -= moments[j + 1 :, j, None] * (new - atoms[j])
        atoms[j] = new
