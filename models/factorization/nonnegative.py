"""Codes without negative entries and without a sparsity penalty: non-negative least squares, one problem per row."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Codes
from ..kernels import nnls


def nonnegative_codes(
    x: Tensor, atoms: Tensor, *, penalty: float = 0.0, tolerance: float = 1e-6, sweeps: int = 500
) -> Tensor:
    """The g >= 0 that minimises ½‖x - Dᵀ g‖² + penalty Σ g for every row, [n, H] float64.

    Each row on its own: what a row's codes are does not depend on the rows beside it.

    Args:
        x: [n, D].
        atoms: [H, D]; those of zeros get 0.
        penalty: Price of a unit of g.
        tolerance: A row is done once no coordinate moves by more than this share of ‖x‖ (along its atom) in a sweep.
        sweeps: At most so many sweeps over the coordinates.
    """
    wide, rows = atoms.double(), x.double()
    limits = tolerance * torch.linalg.vector_norm(rows, dim=1)
    return nnls(rows @ wide.T - penalty, wide @ wide.T, limits, sweeps)


def as_codes(dense: Tensor) -> Codes:
    """[n, H] as codes with room for all atoms."""
    every = torch.arange(dense.shape[1], dtype=torch.int32, device=dense.device).expand(dense.shape)
    return Codes(every.masked_fill(dense == 0, -1), dense)
