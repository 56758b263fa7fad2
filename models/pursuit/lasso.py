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
from ..kernels import native
from ..kernels.lasso import lasso_rows
from ..kernels.threads import on_threads, scratch
from .fista import fista
from .problem import (
    BUDGET,
    Pursued,
    Status,
    blocks,
    check_problem,
    cpu_blocks,
    energies,
    gram_matrix,
    joined,
    packed,
    real,
)
from .threshold import check_penalty

Solver = Literal["auto", "homotopy", "descent", "fista"]
LONGEST_PATH = 2048
"""Active atoms of a homotopy: its factor is a matrix of that order."""
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
    trust_gram: bool = False,
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
            default as many columns as the fullest code needs. `error` is that before the cut.
        solver: "homotopy" (exact path of the solution, for few non-zeros), "descent" (coordinate descent), "fista"
            (whole blocks in torch, any device); "auto" takes the first or second. Those two are compiled for CPUs: on
            a GPU, and where the kernels were not built, fista runs whichever is named.
        iterations: of fista; sweeps of descent.
        gram: atomsᵀ atoms [H, H], where it is at hand.
        trust_gram: leave out the look for NaN and infinite values in `gram`.
        warm: codes to start from (fista and descent): int32 indices [n, m], -1 where unused, no atom twice in one code,
            and finite values [n, m].
        budget: bytes of scratch memory besides the Gram matrix.

    Returns:
        Codes by ascending atom; `error` is ‖x - D a‖².

    Raises:
        ModelError: shapes, types or options that do not fit, or values that are not finite.
    """
    check_problem(x, real(atoms), gram, trust_gram=trust_gram)
    lam = check_penalty(penalty, atoms)
    if not bool((lam > 0).all()):
        raise ModelError("penalty must be positive for every atom; without one the solution is not sparse")
    if not 0 <= ridge < float("inf"):
        raise ModelError(f"ridge={ridge}: must be finite and not negative")
    if not tolerance > 0:
        raise ModelError(f"tolerance={tolerance}: must be positive")
    if iterations < 1:
        raise ModelError(f"iterations={iterations}: at least one is needed")
    if nonzeros is not None and nonzeros < 1:
        raise ModelError(f"nonzeros={nonzeros}: a code needs at least one")
    if solver not in SOLVERS:
        raise ModelError(f"solver={solver!r}: choose one of {', '.join(SOLVERS)}")
    check_warm(warm, x, atoms)
    gram = gram_matrix(atoms) if gram is None else gram
    width = None if nonzeros is None else min(nonzeros, atoms.shape[1])
    energy = energies(x)
    if native.usable(x, atoms, gram) and solver != "fista":
        path = solver == "homotopy" or (solver == "auto" and warm is None)
        most = path_length(atoms, ridge, whole=solver == "homotopy")

        def compiled(rows: slice) -> Pursued:
            at, start = _entries(warm, rows, x)
            b = torch.mm(x[rows], atoms, out=scratch("b", (rows.stop - rows.start, atoms.shape[1]), x))
            indices, values, status, error = lasso_rows(
                *(b, gram, energy[rows], lam, ridge),
                nonnegative=nonnegative,
                tolerance=tolerance,
                sweeps=iterations,
                path=path,
                most=most,
                warm=at,
                start=start,
            )
            return _cut(Pursued(Codes(indices, values), status, error), width)

        pieces = cpu_blocks(len(x), 3 * atoms.shape[1] * x.itemsize, budget)
        parts = on_threads(compiled, pieces)
    else:
        parts = []
        for rows in blocks(len(x), 12 * atoms.shape[1] * x.itemsize, budget):
            at, start = _entries(warm, rows, x)
            a, reached, error = fista(
                *(x[rows] @ atoms, gram, energy[rows], lam, ridge, Codes(at, start).dense(atoms.shape[1])),
                nonnegative=nonnegative,
                tolerance=tolerance,
                iterations=iterations,
            )
            status = torch.where(reached, int(Status.CONVERGED), int(Status.UNFINISHED))
            status[energy[rows] == 0] = Status.ZERO
            parts.append(_cut(Pursued(packed(a), status.to(torch.uint8), error), width))
    return joined(parts, width or max((p.codes.indices.shape[1] for p in parts), default=0), x)


def path_length(atoms: Tensor, ridge: float, *, whole: bool) -> int:
    """Active atoms up to which a path is followed: beyond a seventh of all, descent is faster."""
    dim, count = atoms.shape
    possible = count if ridge > 0 else min(dim, count)
    return min(possible, LONGEST_PATH if whole else max(32, count // 7, dim // 2))


def check_warm(warm: Codes | None, x: Tensor, atoms: Tensor) -> None:
    """Raises ModelError: codes to start from that are not of these signals and atoms."""
    if warm is None:
        return
    at, values = warm.indices, warm.values
    if at.dtype != torch.int32 or not values.is_floating_point():
        raise ModelError(f"warm holds indices of {at.dtype} and values of {values.dtype}; give int32 and real numbers")
    if at.ndim != 2 or len(at) != len(x) or values.shape != at.shape:
        raise ModelError(
            f"warm holds indices {tuple(at.shape)} and values {tuple(values.shape)}; give both as [{len(x)}, m], one "
            "row for each signal"
        )
    if at.device != x.device or values.device != x.device:
        raise ModelError(f"warm lies on {at.device} and {values.device}, but the signals on {x.device}")
    if bool((at >= atoms.shape[1]).any()):
        raise ModelError(f"warm holds atom {int(at.max())}, but there are {atoms.shape[1]} atoms, counted from 0")
    if not bool(values.isfinite().all()):
        raise ModelError("warm holds NaN or infinite values")
    ordered = at.sort(dim=1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if bool(twice.any()):
        row = int(twice.any(1).nonzero()[0])
        raise ModelError(f"warm holds an atom twice in the code of signal {row}; each may stand there once")


def _entries(warm: Codes | None, rows: slice, x: Tensor) -> tuple[Tensor, Tensor]:
    if warm is None:
        count = rows.stop - rows.start
        return torch.empty(count, 0, dtype=torch.int32, device=x.device), x.new_empty(count, 0)
    return warm.indices[rows], warm.values[rows].to(x.dtype)


def _cut(found: Pursued, width: int | None) -> Pursued:
    """Codes of at most `width` entries: of fuller ones the largest are kept, and the status says so."""
    if width is None or found.codes.indices.shape[1] <= width:
        return found
    over = found.nonzeros > width
    kept = found.codes.values.abs().topk(width, dim=1).indices.sort(dim=1).values
    # Where there is nothing to cut the used entries stand first: the order is kept.
    kept = torch.where(over[:, None], kept, torch.arange(width, device=kept.device))
    codes = Codes(found.codes.indices.gather(1, kept), found.codes.values.gather(1, kept))
    return Pursued(codes, torch.where(over, int(Status.FULL), found.status).to(torch.uint8), found.error)
