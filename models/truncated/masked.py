"""Rows with missing entries (NaN): sums over the observed dimensions only, and what an M-step needs of the others.

A row's likelihood is that of its observed entries, so G = WᵀW becomes a matrix per row, of which only the diagonal
[n, H] (one product) and the entries between candidates [n, H', H'] are needed. In the M-step a missing entry is latent:
given the states, its expectation is the model's own prediction, its variance the model's noise, so that EM remains EM
and the free energy of the observed entries cannot fall. (Drefs, Guiraud, Lücke, JMLR 23, 2022, put the mean prediction
in its place and leave the variance out.)

Shapes: n points, D observed dimensions, H atoms, H' candidates, P pairs of candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TILE_ELEMENTS = 1 << 21


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of which some entries are missing."""

    x: Tensor
    """[n, D], 0 where nothing was observed."""
    seen: Tensor
    """[n, D] of the same dtype, 1 where something was."""

    @property
    def dims(self) -> Tensor:
        """[n] float64, observed dimensions."""
        return self.seen.sum(1, dtype=torch.float64)

    @property
    def gone(self) -> Tensor:
        """[n, D], 1 where nothing was observed."""
        return 1 - self.seen

    def pick(self, rows: Tensor | slice) -> Rows:
        """Some of the rows."""
        return Rows(self.x[rows], self.seen[rows])


def split(x: Tensor, *, allowed: bool) -> Rows | None:
    """The rows and which of their entries were observed; None where all were, or where a NaN is an error."""
    if not allowed:
        return None
    gone = torch.isnan(x)
    if not bool(gone.any()):
        return None
    return Rows(x.masked_fill(gone, 0), (~gone).to(x.dtype))


def pair_products(root: Tensor, seen: Tensor, atoms: Tensor) -> Tensor:
    """Σ_d seen_nd R_di R_dj for the chosen atoms of every row: [n, H', H'].

    Args:
        root: R [D, H], the dictionary in units of the noise.
        seen: [n, D].
        atoms: [n, H'] int64.
    """
    out = seen.new_empty(len(seen), atoms.shape[1], atoms.shape[1])
    columns = root.T.contiguous()
    for rows in _tiles(len(seen), atoms.shape[1] * root.shape[0]):
        chosen = columns[atoms[rows]]
        torch.bmm(chosen * seen[rows, None], chosen.transpose(1, 2), out=out[rows])
    return out


def expected_products(weights: Tensor, gone: Tensor, atoms: Tensor, own: Tensor, between: Tensor) -> Tensor:
    """Σ_n Σ_{d missing} E[y_nd c_nᵀ] = Σ_n gone_nd Σ_j W_dj <c_j c_h>_n, [D, H] float64.

    Args:
        weights: W [D, H].
        gone: [n, D].
        atoms: [n, H'] int64, the candidates.
        own: [n, H] <c_h²>.
        between: [n, H', H'] <c_i c_j> of the candidates, 0 on the diagonal.
    """
    out = (gone.T @ own) * weights
    total = out.double().T.contiguous()
    columns = weights.T.contiguous()
    for rows in _tiles(len(gone), atoms.shape[1] * weights.shape[0]):
        part = torch.bmm(between[rows], columns[atoms[rows]]).mul_(gone[rows, None])
        total += torch.zeros_like(columns).index_add_(0, atoms[rows].flatten(), part.flatten(0, 1))
    return total.T


def between_pairs(pairs: Tensor, first: Tensor, second: Tensor, candidates: int) -> Tensor:
    """[n, H', H'] symmetric, 0 on the diagonal, from [n, P] over pairs of positions (those with i = j are left out)."""
    out = pairs.new_zeros(len(pairs), candidates, candidates)
    apart = first != second
    out[:, first[apart], second[apart]] = out[:, second[apart], first[apart]] = pairs[:, apart]
    return out


def _tiles(rows: int, elements: int) -> list[slice]:
    step = max(1, TILE_ELEMENTS // max(elements, 1))
    return [slice(a, min(a + step, rows)) for a in range(0, rows, step)]
