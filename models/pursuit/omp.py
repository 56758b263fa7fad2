"""Orthogonal matching pursuit (Pati et al. 1993; Batch-OMP: Rubinstein, Zibulevsky & Elad 2008).

min ‖x - D a‖² with at most k non-zeros, greedily: the atom most correlated with the residual joins the support, and all
coefficients are fitted again. The compiled kernel works on CPUs, `batched` anywhere else; their supports agree.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

from ..base import Codes
from ..errors import ModelError
from ..kernels import native
from ..kernels.omp import omp_rows
from ..kernels.threads import on_threads, scratch
from . import batched
from .problem import BUDGET, Pursued, blocks, check_problem, cpu_blocks, energies, gram_matrix, joined, unit

TRUSTED = 1e-4
"""Share of ‖x‖² below which ‖r‖², found by subtraction in float32, is not trusted."""


def batch_omp(
    x: Tensor,
    atoms: Tensor,
    *,
    nonzeros: int | None = None,
    error: Tensor | float | None = None,
    penalty: float = 0.0,
    gram: Tensor | None = None,
    trust_gram: bool = False,
    select: Literal["omp", "ols"] = "omp",
    budget: int = BUDGET,
) -> Pursued:
    """Sparse codes by orthogonal matching pursuit.

    Atoms of any length are taken: they are normalised inside, the values returned are those of the atoms given. Atoms
    of length zero are never chosen. Of equally correlated atoms the one with the lowest index is chosen.

    Args:
        x: [n, D] signals, float32, float64 or complex.
        atoms: [D, H], of the same type.
        nonzeros: k, most entries of a code; more than min(D, H) are cut to that, with a warning. By default min(D, H),
            which needs `error` or `penalty`.
        error: stop where ‖x - D a‖² is at most this: a number, or [n]. The stop never leaves more than that.
        penalty: λ of ½‖x - D a‖² + λ‖a‖₀: stop before the atom that does not lower it.
        gram: atomsᴴ atoms [H, H] of the atoms as given, where it is at hand.
        trust_gram: leave out the look for NaN and infinite values in `gram`.
        select: "omp", or "ols": the atom that lowers the error most (order-recursive matching pursuit).
        budget: bytes of scratch memory; no Gram matrix is formed that does not fit.

    Returns:
        Codes with k columns, entries in the order of choice.

    Raises:
        ModelError: shapes, types or options that do not fit, or values that are not finite.
    """
    check_problem(x, atoms, gram, trust_gram=trust_gram)
    if not 0 <= penalty < float("inf"):
        raise ModelError(f"penalty={penalty}: must be finite and not negative")
    steps = check_steps(nonzeros, atoms, error if penalty == 0 else penalty)
    if select not in ("omp", "ols"):
        raise ModelError(f"select={select!r}: choose omp or ols")
    rule = batched.Rule(steps, select == "ols", 2 * penalty)
    allowed = check_error(error, x)
    energy = energies(x)
    directions, gram, scale = unit(atoms, gram)
    if gram is None and worth_a_gram(len(x), atoms, steps, budget):
        gram = gram_matrix(directions)
    found = _pursue(x, directions, energy, rule, allowed, gram, budget)
    if (error is not None or penalty > 0) and x.dtype == torch.float32:
        found = _again_in_double(found, x, directions, energy, rule, allowed, budget)
    if bool((scale != 1).any()):
        values = found.codes.values * scale[found.codes.indices.clamp(min=0).long()]
        found = Pursued(Codes(found.codes.indices, values), found.status, found.error)
    return found


def check_steps(nonzeros: int | None, atoms: Tensor, error: Tensor | float | None = None) -> int:
    """How many atoms a code may have, at most min(D, H).

    Raises:
        ModelError: less than one, or neither a number of non-zeros nor an error to stop at.
    """
    most = min(atoms.shape)
    if nonzeros is None:
        if error is None:
            raise ModelError("nonzeros and error are both missing: say how many non-zeros, or which error, to stop at")
        return most
    if nonzeros < 1:
        raise ModelError(f"nonzeros={nonzeros}: a code needs at least one")
    if nonzeros > most:
        warnings.warn(
            f"nonzeros={nonzeros} is more than can be independent: {atoms.shape[1]} atoms of {atoms.shape[0]} "
            f"dimensions; {most} are used",
            stacklevel=3,
        )
    return min(nonzeros, most)


def check_error(error: Tensor | float | None, x: Tensor) -> Tensor:
    """The allowed squared error of each signal, [n] in x's real dtype; -1 for none.

    Raises:
        ModelError: negative, NaN or of another shape.
    """
    dtype = torch.empty(0, dtype=x.dtype).real.dtype
    if error is None:
        return torch.full((len(x),), -1.0, dtype=dtype, device=x.device)
    given = torch.as_tensor(error, dtype=dtype, device=x.device)
    if given.shape not in ((), (len(x),)):
        raise ModelError(f"error has shape {tuple(given.shape)}; give one number or one for each of {len(x)} signals")
    if not bool((given >= 0).all()):
        raise ModelError("error must not be negative or NaN")
    return given.expand(len(x)).contiguous()


def worth_a_gram(rows: int, atoms: Tensor, steps: int, budget: int) -> bool:
    """Whether the Gram matrix fits the budget and pays for these rows."""
    count = atoms.shape[1]
    return count * count * atoms.itemsize <= budget and rows * steps >= count


def _pursue(
    x: Tensor,
    atoms: Tensor,
    energy: Tensor,
    rule: batched.Rule,
    allowed: Tensor,
    gram: Tensor | None,
    budget: int,
) -> Pursued:
    dim, count = atoms.shape
    if gram is not None and native.usable(x, atoms, gram):
        return _compiled(x, atoms, energy, rule, allowed, gram, budget)
    size = batched.row_bytes(dim, count, rule.steps, x.itemsize, gram=gram is not None, ols=rule.ols)
    parts: list[Pursued] = []
    for rows in blocks(len(x), size, budget):
        found = batched.pursue(x[rows], atoms, energy[rows], rule, allowed=allowed[rows], gram=gram)
        parts.append(Pursued(Codes(found.chosen.to(torch.int32), found.values), found.status, found.error))
    return joined(parts, rule.steps, x)


def _compiled(
    x: Tensor, atoms: Tensor, energy: Tensor, rule: batched.Rule, allowed: Tensor, gram: Tensor, budget: int
) -> Pursued:
    n, count, steps = len(x), atoms.shape[1], rule.steps
    indices, values = torch.empty(n, steps, dtype=torch.int32), x.new_empty(n, steps)
    status, error = torch.empty(n, dtype=torch.uint8), x.new_empty(n)
    limits = {"silence": batched.silence(x.dtype), "margin": batched.margin(x.dtype), "least": rule.least}

    def block(rows: slice) -> None:
        b = torch.mm(x[rows], atoms, out=scratch("b", (rows.stop - rows.start, count), x))
        out = (indices[rows], values[rows], status[rows], error[rows])
        omp_rows(b, gram, energy[rows], allowed[rows], steps, **limits, ols=rule.ols, out=out)

    on_threads(block, cpu_blocks(n, count * x.itemsize, budget))
    return Pursued(Codes(indices, values), status, error)


def _again_in_double(
    found: Pursued,
    x: Tensor,
    atoms: Tensor,
    energy: Tensor,
    rule: batched.Rule,
    allowed: Tensor,
    budget: int,
) -> Pursued:
    """The signals whose error came so low that float32 cannot tell it, once more in float64."""
    doubtful = ((found.error < TRUSTED * energy) & (energy > allowed)).nonzero()[:, 0]
    if len(doubtful) == 0:
        return found
    wide = atoms.double()
    exact = _pursue(
        x[doubtful].double(),
        wide,
        energies(x[doubtful].double()),
        rule,
        allowed[doubtful].double(),
        gram_matrix(wide) if worth_a_gram(len(doubtful), wide, rule.steps, budget) else None,
        budget,
    )
    indices, values = found.codes.indices, found.codes.values
    indices[doubtful], values[doubtful] = exact.codes.indices, exact.codes.values.to(values.dtype)
    found.status[doubtful], found.error[doubtful] = exact.status, exact.error.to(energy.dtype)
    return found
