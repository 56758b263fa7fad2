"""Dictionary updates from the sums A = Σ a aᵀ [H, H] and B = Σ a xᵀ [H, D]; atoms are the rows of [H, D] float64.

Sources: MOD – Engan, Aase, Husøy, ICASSP 1999; block coordinates – Mairal, Bach, Ponce, Sapiro, JMLR 11, 2010,
algorithm 2; orthogonal Procrustes – Schönemann, Psychometrika 31, 1966.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.sums import Length, sweep_block
from ..pursuit.problem import SMALLEST_NORM
from ..truncated.expectation import solve

BLOCK = 32


def normalised(atoms: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of norm 1, and which rows [H] had a norm to divide by; the others come back as they are."""
    norm = torch.linalg.vector_norm(atoms, dim=1)
    good = norm > SMALLEST_NORM
    return atoms / torch.where(good, norm, torch.ones_like(norm))[:, None], good


def least_squares(atoms: Tensor, moments: Tensor, cross: Tensor) -> Tensor:
    """MOD: the dictionary with the least squared error, not normalised. Atoms that no code uses stay.

    Solved for the change, so that directions without data keep the old dictionary.
    """
    return atoms + solve(moments, (cross - moments @ atoms).T).T


def coordinate_sweep(
    atoms: Tensor,
    moments: Tensor,
    cross: Tensor,
    *,
    length: Length = "unit",
    nonnegative: bool = False,
    sweeps: int = 1,
) -> Tensor:
    """Each atom in turn at its optimum while the others stay: on the unit sphere, in the unit ball, or anywhere.

    The objective does not rise. Products run over blocks of atoms: inside a block the residuals are kept up to date.
    Atoms of (almost) no weight in the codes stay.
    """
    atoms, moments = atoms.clone(), moments.contiguous()
    least = 1e-10 * float(moments.diagonal().amax())
    for _ in range(sweeps):
        for first in range(0, atoms.shape[0], BLOCK):
            part = slice(first, first + BLOCK)
            residual = torch.addmm(cross[part], moments[part], atoms, alpha=-1)
            own = moments[part, part].contiguous()
            sweep_block(atoms[part], own, residual, length=length, nonnegative=nonnegative, least=least)
    return atoms


def polar(matrix: Tensor) -> Tensor:
    """U Vᵀ of the singular value decomposition: the nearest matrix with orthonormal rows or columns.

    On a GPU by Newton–Schulz iterations (Björck, Bowie 1971), where they converge; else by the decomposition itself.
    """
    wide = matrix.double()
    if wide.is_cuda:
        x = wide / torch.linalg.matrix_norm(wide).clamp(min=1e-300)
        for _ in range(24):
            x = 1.5 * x - 0.5 * x @ (x.T @ x) if x.shape[0] >= x.shape[1] else 1.5 * x - 0.5 * (x @ x.T) @ x
        small = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
        if float((small - torch.eye(len(small), dtype=x.dtype, device=x.device)).abs().amax()) < 1e-8:
            return x
    left, _, right = torch.linalg.svd(wide, full_matrices=False)
    return left @ right
