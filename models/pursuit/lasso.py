"""Lasso, elastic net, their non-negative and weighted forms, with a given dictionary.

F(a) = ½‖x - D a‖² + Σ_j λ_j |a_j| + ½ λ₂ ‖a‖². (scikit-learn's `Lasso` divides the first term by the number of
dimensions; `sparse_encode` does not, as here.)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..base import Codes
from ..errors import ModelError
from .fista import fista
from .problem import (
    BUDGET,
    Pursued,
    Status,
    blocks,
    check_problem,
    energies,
    gram_matrix,
    joined,
    packed,
    padded_to,
    real,
)
from .threshold import check_penalty

Solver = Literal["auto", "homotopy", "descent", "fista"]
SOLVERS = ("auto", "homotopy", "descent", "fista")


def lasso(
    x: Tensor,
    atoms: Tensor,
    penalty: Tensor | float,
    *,
    ridge: float = 0.0,
    nonnegative: bool = False,
    tolerance: float = 1e-4,
    nonzeros: int | None = None,
    solver: Solver = "auto",
    iterations: int = 2000,
    gram: Tensor | None = None,
    warm: Codes | None = None,
    budget: int = BUDGET,
) -> Pursued:
    """Sparse codes that minimise F.

    The atoms are used as they are: the penalty is on the coefficients of the atoms given, of whatever length.

    Args:
        x: [n, D] signals, float32 or float64.
        atoms: [D, H] of the same type.
        penalty: λ, a number or one per atom [H].
        ridge: λ₂ of the elastic net.
        nonnegative: demand a >= 0.
        tolerance: a signal is done where its duality gap, the most by which F can still fall, is at most this share of
            ½‖x‖².
        nonzeros: columns of the codes; of a code with more entries the largest are kept, and its status is FULL. By
            default as many columns as the fullest code needs.
        solver: "homotopy" (exact path of the solution, for few non-zeros), "descent" (coordinate descent), "fista"
            (whole blocks in torch, any device); "auto" takes the first or second on CPUs and the last on GPUs.
        iterations: of fista; sweeps of descent.
        gram: atomsᵀ atoms [H, H], where it is at hand.
        warm: codes to start from (fista and descent).
        budget: bytes of scratch memory besides the Gram matrix.

    Returns:
        Codes by ascending atom; `error` is ‖x - D a‖².

    Raises:
        ModelError: shapes, types or options that do not fit, or values that are not finite.
    """
    check_problem(x, real(atoms), gram)
    lam = check_penalty(penalty, atoms)
    if not 0 <= ridge < float("inf"):
        raise ModelError(f"ridge={ridge}: must be finite and not negative")
    if not tolerance > 0:
        raise ModelError(f"tolerance={tolerance}: must be positive")
    if nonzeros is not None and nonzeros < 1:
        raise ModelError(f"nonzeros={nonzeros}: a code needs at least one")
    if solver not in SOLVERS:
        raise ModelError(f"solver={solver!r}: choose one of {', '.join(SOLVERS)}")
    gram = gram_matrix(atoms) if gram is None else gram
    width = None if nonzeros is None else min(nonzeros, atoms.shape[1])
    parts: list[Pursued] = []
    for rows in blocks(len(x), 12 * atoms.shape[1] * x.itemsize, budget):
        energy = energies(x[rows], rows.start)
        b = x[rows] @ atoms
        start = _start(warm, rows, b)
        a, reached, error = fista(
            b, gram, energy, lam, ridge, start, nonnegative=nonnegative, tolerance=tolerance, iterations=iterations
        )
        parts.append(_result(a, reached, error, energy, width))
    return joined(parts, width or max((p.codes.indices.shape[1] for p in parts), default=0), x)


def _start(warm: Codes | None, rows: slice, b: Tensor) -> Tensor:
    if warm is None:
        return torch.zeros_like(b)
    return Codes(warm.indices[rows], warm.values[rows].to(b.dtype)).dense(b.shape[1])


def _result(a: Tensor, reached: Tensor, error: Tensor, energy: Tensor, width: int | None) -> Pursued:
    codes, cut = packed(a, width)
    status = torch.where(reached, int(Status.CONVERGED), int(Status.UNFINISHED))
    status[cut] = Status.FULL
    status[energy == 0] = Status.ZERO
    return Pursued(codes if width is None else padded_to(codes, width), status.to(torch.uint8), error)
