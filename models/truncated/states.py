"""The latent states that Expectation Truncation evaluates for a datapoint.

For a point with H' candidate atoms: the zero state, all H singletons, and every state with 2 … γ active atoms inside
the candidates (Lücke & Eggert, Expectation Truncation and the Benefits of Preselection, JMLR 11, 2010, section 3).
The states beyond the singletons are the same combinations of positions for every point, so they are one table.

Shapes: M states of two or more atoms, H' candidates, P = H'(H'-1)/2 pairs.
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


def count_states(candidates: int, active: int) -> int:
    """M = Σ_{g=2}^{γ} C(H', g)."""
    return sum(comb(candidates, g) for g in range(2, active + 1))


@dataclass(frozen=True, slots=True)
class StateTable:
    """The multi-atom states over H' candidate positions and the pairs of positions."""

    members: Tensor
    """[M, H'], 1 where a candidate is active."""
    pairs: Tensor
    """[M, P], 1 where both candidates of a pair are active."""
    size: Tensor
    """[M], active candidates."""
    first: Tensor
    """[P] int64, the lower position of each pair."""
    second: Tensor
    """[P] int64, the upper position."""
    design: Tensor
    """[M, H'+P]: members and minus pairs side by side, so that one product with (b - g/2, G) gives sᵀb - ½ sᵀGs."""
    moments: Tensor
    """[M, H'+P]: members and pairs, so that one product with the posterior gives candidate means and pair moments."""


@lru_cache(maxsize=32)
def state_table(candidates: int, active: int, dtype: torch.dtype, device: torch.device) -> StateTable:
    """The table for H' candidates and at most γ active ones.

    Raises:
        ModelError: the table would hold more than 20,000 states.
    """
    n = count_states(candidates, active)
    if n > MOST_STATES:
        raise ModelError(
            f"h_prime={candidates}, gamma={active} make {n:,} states per point, over {MOST_STATES:,}; lower one"
        )
    rows = [c for g in range(2, active + 1) for c in combinations(range(candidates), g)]
    members = torch.zeros(len(rows), candidates, dtype=dtype)
    for i, row in enumerate(rows):
        members[i, list(row)] = 1
    first, second = torch.triu_indices(candidates, candidates, offset=1)
    pairs = members[:, first] * members[:, second]
    return StateTable(
        members=members.to(device),
        pairs=pairs.to(device),
        size=members.sum(1).to(device),
        first=first.to(device),
        second=second.to(device),
        design=torch.cat([members, -pairs], 1).to(device),
        moments=torch.cat([members, pairs], 1).to(device),
    )
