"""Codes without negative entries and without a sparsity penalty: non-negative least squares, one problem per row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import Codes
from ..kernels import nnls
from .coding import Factorization


@dataclass(frozen=True, kw_only=True)
class NonnegativeCodes(Factorization):
    """Base of the models whose codes are non-negative least squares."""

    def codes(self, atoms: Tensor, x: Tensor) -> Codes:
        """Non-negative least squares, at the price of the model."""
        return as_codes(nonnegative_codes(x, atoms, penalty=self.price).to(x.dtype))

    def flops(self, dim: int) -> float:
        """Scores, some thirty sweeps over the coordinates, and the sums."""
        return 4.0 * dim * self.atoms + 62.0 * self.atoms**2


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
