"""Truncated posteriors of the spike-and-slab model with a diagonal slab, fused: from scores to means over the rows.

Shapes: n rows of a block, H atoms, H' candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, combinations
from math import comb

import torch
from torch import Tensor

from . import native
from .linear import LANES_BYTES, PIECE, aligned

MOST_ACTIVE = 6
"""Largest γ that the kernel is compiled for."""


@dataclass(frozen=True)
class SlabRows:
    """All that the posteriors of a model's rows have in common; tensors on the CPU, in the dtype of the rows.

    The torch twin is `models.truncated.gsc.GSC.posterior`.
    """

    gram: Tensor
    """[H, H] WᵀΣ⁻¹W."""
    logit: Tensor
    """[H] of π."""
    mean: Tensor
    """[H] μ."""
    variance: Tensor
    """[H] ψ."""
    candidates: int
    """H'."""
    active: int
    """γ, at most 6."""
    beta: float
    """Inverse temperature of the likelihood."""
    heat: float
    """Inverse temperature of the prior."""

    padded: int = field(init=False)
    _tables: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        atoms, lanes = len(self.gram), LANES_BYTES // self.gram.element_size()
        padded = -(-atoms // lanes) * lanes
        fill = lambda t, value: aligned(torch.nn.functional.pad(t, (0, padded - atoms), value=value))  # noqa: E731
        energy, mu, psi = self.gram.diagonal(), self.mean, self.variance
        b = 1 + psi * energy
        gain = torch.stack([-0.5 * (mu.square() * energy / b + b.log()), mu / b, 0.5 * psi / b])
        kappa = torch.stack([mu / b, psi / b, psi / b])
        tables = (
            fill(gain, 0.0),
            fill(kappa, 0.0),
            fill(self.logit, -1e30),
            fill(mu, 0.0),
            fill(psi.sqrt(), 0.0),
        )
        object.__setattr__(self, "padded", padded)
        object.__setattr__(self, "_tables", tables)

    def run(
        self,
        scores: Tensor,
        log_z: Tensor,
        log_evidence: Tensor,
        *,
        use: Tensor | None = None,
        pairs: Tensor | None = None,
    ) -> Tensor:
        """Candidates, joints, their softmax and its moments.

        Args:
            scores: [n, H] b = WᵀΣ⁻¹y; overwritten by the means <s∘z> (0 for rows not in use) where `pairs` is given.
            log_z: [n] float64, gets log Σ exp of the tempered joints relative to the empty state's.
            log_evidence: [n] float64, gets the same at temperature 1.
            use: [n] uint8, 1 for rows that count for the moments; all by default.
            pairs: [H, H] float64, to which Σ <s_i z_i s_j z_j> of pairs of candidates is added, at (i, j) or (j, i).
                Without it no moments are computed.

        Returns:
            [3, H] float64, Σ <s>, Σ <s∘z> and Σ <(s∘z)²> over the rows in use; zero without moments.
        """
        n, atoms = scores.shape
        lanes, moments = LANES_BYTES // scores.element_size(), pairs is not None
        where, counts = _states(self.candidates, self.active)
        groups, count = -(-n // lanes), self.candidates * (self.candidates - 1) // 2
        between = aligned(scores.new_empty(groups * count * lanes if moments else 0))
        chosen = torch.empty(n, self.candidates, dtype=torch.int64)
        sums = torch.zeros(-(-n // PIECE), 3, atoms, dtype=torch.float64)
        native.call(
            "slab_rows", scores, n, atoms, self.padded, self.gram, *self._tables, where, counts,
            self.candidates, self.active, float(self.beta), float(self.heat), int(self.beta != 1.0),
            chosen, torch.ones(n, dtype=torch.uint8) if use is None else use, log_z, log_evidence,
            int(moments), between, sums, PIECE, sums if pairs is None else pairs,
        )  # fmt: skip
        return sums.sum(0)


@lru_cache(maxsize=32)
def _states(candidates: int, active: int) -> tuple[Tensor, Tensor]:
    """Positions of all states of 2 … γ candidates, one after the other, and how many there are of each size."""
    rows = chain.from_iterable(combinations(range(candidates), m) for m in range(2, active + 1))
    counts = [comb(candidates, m) if m > 1 else 0 for m in range(active + 1)]
    return torch.tensor(list(chain.from_iterable(rows)), dtype=torch.int32), torch.tensor(counts, dtype=torch.int64)
