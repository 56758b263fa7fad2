"""K-SVD for rows that are all in one place: one atom after the other, with its coefficients.

Aharon, Elad, Bruckstein, K-SVD, IEEE TSP 54, 2006; by power steps instead of a singular value decomposition:
Rubinstein, Zibulevsky, Elad, Technion CS-2008-08. For rows that are spread over workers see `ksvd.py`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..base import Codes
from .sums import decode


def ksvd_sweep(x: Tensor, atoms: Tensor, codes: Codes, *, power: int | None = 1) -> tuple[Tensor, Codes]:
    """Each unit atom and its coefficients, in turn, at the best rank-one fit of what the other atoms leave.

    The squared error does not rise; the codes' places do not change. Atoms that no row uses stay.

    Args:
        x: [n, D] rows.
        atoms: [H, D] of norm 1, in the dtype of `x`.
        codes: Of the rows.
        power: Power steps per atom, from its coefficients; None: the singular value decomposition (exact K-SVD).

    Returns:
        Atoms [H, D] of norm 1 and codes.
    """
    atoms, values = atoms.clone(), codes.values.clone(memory_format=torch.contiguous_format)
    flat = values.view(-1)
    residual = x - decode(codes, atoms)
    for j, entries in enumerate(_entries_by_atom(codes, len(atoms))):
        if len(entries) == 0:
            continue
        rows = entries // values.shape[1]
        weights = flat[entries]
        own = residual[rows] + weights[:, None] * atoms[j]
        atom, weights = _rank_one(own, atoms[j], weights, power)
        atoms[j], flat[entries] = atom, weights
        residual[rows] = own - weights[:, None] * atom
    return atoms, Codes(codes.indices, values)


def _rank_one(own: Tensor, atom: Tensor, weights: Tensor, power: int | None) -> tuple[Tensor, Tensor]:
    """The unit atom [D] and the weights [m] whose product fits `own` [m, D] best."""
    if power is None:
        _, _, right = torch.linalg.svd(own, full_matrices=False)
        # Of the two signs, the one nearer to the atom before.
        atom = right[0] * (1.0 if float(right[0] @ atom) >= 0 else -1.0)
        return atom, own @ atom
    for _ in range(power):
        pulled = weights @ own
        norm = torch.linalg.vector_norm(pulled)
        if not float(norm) > 0:
            break
        atom = pulled / norm
        weights = own @ atom
    return atom, weights


def _entries_by_atom(codes: Codes, atoms: int) -> list[Tensor]:
    """Per atom, where in the flattened codes it has entries other than 0."""
    at = codes.indices.flatten().long().masked_fill(codes.values.flatten() == 0, -1)
    order = torch.argsort(at, stable=True)
    counts = torch.bincount(at + 1, minlength=atoms + 1)
    ends = counts.cumsum(0).tolist()
    return [order[a:b] for a, b in pairwise(ends)]
