"""What all pursuits share: the problem's checks, the result, blocks of rows that fit a memory budget.

Shapes: n signals x [n, D] (rows), atoms [D, H] (columns), G = atomsᴴ atoms [H, H], b = x·conj(atoms) [n, H].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from ..base import Codes
from ..errors import ModelError

BUDGET = 2**28
"""Bytes of scratch memory that a pursuit may use unless it is told otherwise."""
CACHE_BYTES = 2**20
"""Bytes of correlations that a block for a compiled kernel has."""
SMALLEST_BLOCK = 512
"""Rows below which a block's matrix product is slow."""
SMALLEST_NORM = 1e-12
"""Atoms shorter than this are never chosen, and not normalised."""
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


class Status(IntEnum):
    """Why a signal's code is as it is."""

    CONVERGED = 0
    """The optimum; for greedy pursuits, no atom correlates with the residual any more."""
    FULL = 1
    """As many non-zeros as were allowed."""
    REACHED = 2
    """The allowed error was reached."""
    DEPENDENT = 3
    """The next atom depends linearly on those chosen before; the code is what was found until then."""
    ZERO = 4
    """The signal is zero, or too small for its square, and so its code is empty."""
    UNFINISHED = 5
    """The iterations ran out; the code is the best known."""


@dataclass(frozen=True, slots=True)
class Pursued:
    """Sparse codes of n signals and how each came about."""

    codes: Codes
    """Indices [n, k] int32, -1 where unused; values [n, k], 0 there."""
    status: Tensor
    """[n] uint8, a `Status` per signal."""
    error: Tensor
    """[n] ‖x - D a‖², in the real dtype of x."""

    @property
    def nonzeros(self) -> Tensor:
        """[n] int64, entries used of each code."""
        return (self.codes.indices >= 0).sum(1)


def check_problem(x: Tensor, atoms: Tensor, gram: Tensor | None = None, *, trust_gram: bool = False) -> None:
    """Raises ModelError: shapes or dtypes that do not fit; atoms, or a Gram matrix, that are not finite or too large.

    `trust_gram` leaves out the look at all H² entries: for those who formed the matrix from atoms checked here.
    """
    demand_tensor("signals", x)
    demand_tensor("atoms", atoms)
    if x.ndim != 2 or atoms.ndim != 2:
        raise ModelError(f"signals {tuple(x.shape)} and atoms {tuple(atoms.shape)} must be matrices [n, D] and [D, H]")
    if x.shape[1] != atoms.shape[0]:
        raise ModelError(
            f"signals have {x.shape[1]} dimensions, but atoms {atoms.shape[0]}; atoms are columns: give [D, H]"
        )
    if 0 in atoms.shape:
        raise ModelError(f"atoms {tuple(atoms.shape)}: a dictionary needs at least one atom and one dimension")
    if x.dtype != atoms.dtype or x.dtype not in DTYPES:
        raise ModelError(
            f"signals are {x.dtype} and atoms {atoms.dtype}; both must be one floating-point type: float32, float64, "
            "complex64 or complex128"
        )
    if gram is not None and (gram.shape != (atoms.shape[1],) * 2 or gram.dtype != atoms.dtype):
        raise ModelError(
            f"gram is {gram.dtype} {tuple(gram.shape)}, but {atoms.shape[1]} atoms of {atoms.dtype} have another"
        )
    # Where the squares are finite, so are all products of atoms with each other and with the signals.
    if not bool(torch.linalg.vector_norm(atoms, dim=0).square().isfinite().all()):
        raise ModelError("atoms hold NaN, infinite or too large values")
    if gram is not None and not trust_gram and not bool(gram.isfinite().all()):
        raise ModelError("gram holds NaN or infinite values")


def demand_tensor(what: str, given: object) -> None:
    """ModelError unless `given` is a tensor."""
    if not isinstance(given, Tensor):
        raise ModelError(f"{what} are a {type(given).__name__}: give torch tensors, as by torch.from_numpy")


def real(matrix: Tensor) -> Tensor:
    """A problem for solvers that know no complex numbers.

    Raises:
        ModelError: it is complex.
    """
    demand_tensor("atoms", matrix)
    if matrix.is_complex():
        raise ModelError(f"{matrix.dtype}: this pursuit knows real numbers only; batch_omp takes complex ones")
    return matrix


def energies(x: Tensor) -> Tensor:
    """‖x‖² of each row of x [n, D], [n] in its real dtype.

    Raises:
        ModelError: a row holds NaN, infinite, or so large values that their squares overflow.
    """
    if x.is_complex():
        x = torch.view_as_real(x).flatten(1)
    found = torch.linalg.vecdot(x, x)
    good = found.isfinite()
    if not bool(good.all()):
        row = int(good.logical_not().nonzero()[0])
        raise ModelError(f"signal {row} holds NaN, infinite or too large values")
    return found


def unit(atoms: Tensor, gram: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
    """The atoms at length one: atoms [D, H], their Gram matrix (if one is given) and 1/norm [H], 0 for zero atoms.

    Coefficients of unit atoms times 1/norm are those of the atoms that were given. Zero atoms stay zero.
    """
    norms = torch.linalg.vector_norm(atoms, dim=0)
    scale = torch.where(norms > SMALLEST_NORM, 1 / norms.clamp(min=SMALLEST_NORM), 0)
    # Norms of atoms that are unit up to rounding are left alone: no copy of a large dictionary per call.
    if bool(((norms - 1).abs() <= 4 * torch.finfo(norms.dtype).eps).all()):
        return atoms, gram, torch.ones_like(norms)
    return atoms * scale, None if gram is None else gram * scale * scale[:, None], scale


def gram_matrix(atoms: Tensor) -> Tensor:
    """atomsᴴ atoms, [H, H]."""
    return atoms.mH @ atoms


def squared_errors(x: Tensor, atoms: Tensor, codes: Codes) -> Tensor:
    """‖x - D a‖² of each row, [n], computed from the codes."""
    rebuilt = reconstruct(atoms, codes)
    return (x - rebuilt).abs().square().sum(1)


def reconstruct(atoms: Tensor, codes: Codes) -> Tensor:
    """D a of each row, [n, D]; touches only the atoms in use."""
    if codes.indices.shape[1] == 0:
        return atoms.new_zeros(codes.indices.shape[0], atoms.shape[0])
    if atoms.is_complex():
        return codes.dense(atoms.shape[1]) @ atoms.mT
    rows = codes.indices.clamp(min=0).long()
    return torch.nn.functional.embedding_bag(
        rows, atoms.mT.contiguous(), per_sample_weights=codes.values.to(atoms.dtype), mode="sum"
    )


def blocks(rows: int, row_bytes: int, budget: int) -> Iterator[slice]:
    """The rows 0 … rows-1 in pieces whose scratch memory stays within `budget` bytes (at least one row each)."""
    step = max(1, budget // max(1, row_bytes))
    for first in range(0, rows, step):
        yield slice(first, min(rows, first + step))


def cpu_blocks(rows: int, row_bytes: int, budget: int) -> list[slice]:
    """Blocks for compiled kernels: as small as the products before them allow, so that they stay in the cache.

    All threads together stay within the budget.
    """
    threads = torch.get_num_threads()
    wanted = max(CACHE_BYTES, SMALLEST_BLOCK * row_bytes)
    return list(blocks(rows, row_bytes, min(wanted, budget // threads)))


def joined(parts: list[Pursued], width: int, like: Tensor) -> Pursued:
    """The results of consecutive blocks as one, each code padded to `width` entries."""
    padded = [padded_to(p.codes, width) for p in parts]
    if not padded:
        padded = [Codes(torch.empty(0, width, dtype=torch.int32, device=like.device), like.new_empty(0, width))]
        parts = [Pursued(padded[0], like.new_empty(0, dtype=torch.uint8), like.new_empty(0, dtype=like.real.dtype))]
    if len(parts) == 1:
        return Pursued(padded[0], parts[0].status, parts[0].error)
    return Pursued(
        Codes(torch.cat([c.indices for c in padded]), torch.cat([c.values for c in padded])),
        torch.cat([p.status for p in parts]),
        torch.cat([p.error for p in parts]),
    )


def padded_to(codes: Codes, width: int) -> Codes:
    """The same codes with room for `width` entries, which is no less than they have."""
    more = width - codes.indices.shape[1]
    if more <= 0:
        return codes
    pad = torch.nn.functional.pad
    return Codes(pad(codes.indices, (0, more), value=-1), pad(codes.values, (0, more)))


def packed(dense: Tensor) -> Codes:
    """The non-zeros of each row of `dense` [n, H] as codes, by ascending atom, as wide as the fullest row."""
    used = dense != 0
    counts = used.sum(1)
    k = int(counts.max()) if len(counts) else 0
    # A stable sort of "unused" brings the used atoms to the front in order.
    order = used.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :k]
    there = used.gather(1, order)
    return Codes(torch.where(there, order, -1).to(torch.int32), torch.where(there, dense.gather(1, order), 0))
