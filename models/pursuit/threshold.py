"""One-shot coding: the correlations x·D, thresholded. The exact optimum where the atoms are orthonormal."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Codes
from ..errors import ModelError
from ..kernels import top_k
from .problem import BUDGET, Pursued, Status, blocks, check_problem, energies, joined, packed, squared_errors


def threshold(
    x: Tensor,
    atoms: Tensor,
    *,
    nonzeros: int | None = None,
    penalty: Tensor | float | None = None,
    nonnegative: bool = False,
    budget: int = BUDGET,
) -> Pursued:
    """Codes from the correlations b = x·D alone: their k largest in magnitude, or soft-thresholded, or both.

    For orthonormal atoms that is the minimum of ‖x - D a‖² with k non-zeros, or of ½‖x - D a‖² + penalty·‖a‖₁. The
    atoms are used as they are: a longer one correlates more.

    Args:
        x: [n, D].
        atoms: [D, H].
        nonzeros: k, entries to keep.
        penalty: soft threshold sign(b)·max(|b| - penalty, 0), a number or one per atom [H].
        nonnegative: keep positive correlations only.
        budget: bytes of scratch memory.

    Returns:
        Codes with min(k, H) columns, largest first; or what the fullest code needs, by ascending atom. Status FULL
        where a code has k entries, else CONVERGED.

    Raises:
        ModelError: shapes, types or options that do not fit, or values that are not finite.
    """
    check_problem(x, atoms)
    if nonzeros is None and penalty is None:
        raise ModelError("nonzeros and penalty are both missing: say how many entries to keep, or a soft threshold")
    if nonzeros is not None and nonzeros < 1:
        raise ModelError(f"nonzeros={nonzeros}: a code needs at least one")
    k = None if nonzeros is None else min(nonzeros, atoms.shape[1])
    energy = energies(x)
    amount = check_penalty(penalty if penalty is not None else 0.0, atoms)
    parts: list[Pursued] = []
    for rows in blocks(len(x), 4 * atoms.shape[1] * x.itemsize, budget):
        b = x[rows] @ atoms.conj()
        strength = b if nonnegative else b.abs()
        left = (strength - amount).clamp(min=0)
        dense = left if nonnegative else torch.where(left > 0, b * (left / strength.clamp(min=1e-38)), 0)
        codes = packed(dense) if k is None else _largest(dense, left, k)
        full = (codes.indices >= 0).sum(1) == (k or -1)
        status = torch.where(full, int(Status.FULL), int(Status.CONVERGED))
        status[energy[rows] == 0] = Status.ZERO
        parts.append(Pursued(codes, status.to(torch.uint8), squared_errors(x[rows], atoms, codes)))
    return joined(parts, k if k is not None else max((p.codes.indices.shape[1] for p in parts), default=0), x)


def check_penalty(penalty: Tensor | float, atoms: Tensor) -> Tensor:
    """The penalty of each atom, [H] in the atoms' real dtype.

    Raises:
        ModelError: negative, NaN or of another shape.
    """
    dtype = torch.empty(0, dtype=atoms.dtype).real.dtype
    given = torch.as_tensor(penalty, dtype=dtype, device=atoms.device)
    if given.shape not in ((), (atoms.shape[1],)):
        raise ModelError(
            f"penalty has shape {tuple(given.shape)}; give one number or one for each of {atoms.shape[1]} atoms"
        )
    if not bool(((given >= 0) & given.isfinite()).all()):
        raise ModelError("penalty must be finite and not negative")
    return given.expand(atoms.shape[1]).contiguous()


def _largest(dense: Tensor, strength: Tensor, k: int) -> Codes:
    kept, at = top_k(strength, k)
    there = kept > 0
    return Codes(torch.where(there, at, -1).to(torch.int32), torch.where(there, dense.gather(1, at), 0))
