"""The latent states that Expectation Truncation evaluates for a datapoint.

For a point with H' candidate atoms: the zero state, all singletons (one atom at one of its L non-zero values), and
every state with 2 … γ active atoms inside the candidates (Lücke & Eggert, Expectation Truncation and the Benefits of
Preselection, JMLR 11, 2010, section 3). The states beyond the singletons are the same combinations of positions and
values for every point, so they are one table.

Shapes: M states of two or more atoms, H' candidates, P = H'(H'-1)/2 pairs, L non-zero values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from ..errors import ModelError

MOST_STATES = 20_000


def count_states(candidates: int, active: int, levels: int = 1) -> int:
    """M = Σ_{g=2}^{γ} C(H', g) L^g."""
    return sum(comb(candidates, g) * levels**g for g in range(2, active + 1))


@dataclass(frozen=True, slots=True)
class StateTable:
    """The multi-atom states over H' candidate positions and the pairs of positions, by rising size."""

    members: Tensor
    """[M, H'], 1 where a candidate is active."""
    held: Tensor
    """[M, H'], the value of a candidate, 0 where it is off."""
    size: Tensor
    """[M], active candidates."""
    first: Tensor
    """[P] int64, the lower position of each pair."""
    second: Tensor
    """[P] int64, the upper position."""
    design: Tensor
    """[M, L·H'+P]: which candidate has which value (value-major), and minus the products of values of each pair: its
    product with (singleton log-joints, G) gives the log-joints of the states."""
    moments: Tensor
    """[M, L·H'+P]: the same with plus: the posterior's product with it gives the probabilities of the candidates'
    values and the pair moments <s_i s_j>."""


@lru_cache(maxsize=32)
def state_table(
    candidates: int, active: int, dtype: torch.dtype, device: torch.device, values: tuple[float, ...] = (1.0,)
) -> StateTable:
    """The table for H' candidates, at most γ active ones and the L non-zero `values`.

    Raises:
        ModelError: the table would hold more than 20,000 states.
    """
    n = count_states(candidates, active, len(values))
    if n > MOST_STATES:
        raise ModelError(
            f"h_prime={candidates}, gamma={active} make {n:,} states per point, over {MOST_STATES:,}; lower one"
        )
    parts = [torch.zeros(0, len(values), candidates, dtype=torch.float64)]
    parts += [_states_of_size(g, candidates, len(values)) for g in range(2, active + 1)]
    which = torch.cat(parts)
    held = torch.einsum("mlh,l->mh", which, torch.tensor(values, dtype=torch.float64))
    members = which.sum(1)
    first, second = torch.triu_indices(candidates, candidates, offset=1)
    pairs = held[:, first] * held[:, second]
    return StateTable(
        members=members.to(device, dtype),
        held=held.to(device, dtype),
        size=members.sum(1).to(device, dtype),
        first=first.to(device),
        second=second.to(device),
        design=torch.cat([which.flatten(1), -pairs], 1).to(device, dtype),
        moments=torch.cat([which.flatten(1), pairs], 1).to(device, dtype),
    )


def _states_of_size(size: int, candidates: int, levels: int) -> Tensor:
    """[C(H', g) L^g, L, H'] float64: 1 where a candidate has a value; positions in lexicographic order."""
    where = torch.tensor(list(combinations(range(candidates), size))).reshape(-1, size)
    which = torch.cartesian_prod(*[torch.arange(levels)] * size).reshape(-1, size)
    position = where.repeat_interleave(len(which), 0)
    level = which.repeat(len(where), 1)
    out = torch.zeros(len(position), levels, candidates, dtype=torch.float64)
    return out.index_put_((torch.arange(len(position))[:, None], level, position), torch.ones((), dtype=out.dtype))
