"""Truncated posteriors of linear models with discrete latents, fused: from scores to means in one pass over the rows.

Shapes: n rows of a block, H atoms, H' candidates, L non-zero values, R rules of selection.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import native
from .tree import StateTree, state_tree

LANES_BYTES = 64
PIECE = 64
"""Rows whose counts are added up at once: results do not depend on the number of threads."""


@dataclass(frozen=True, slots=True)
class Joints:
    """What the joint of a singleton at each value is: `constant` [L, H] + `slope` [L] · b."""

    constant: Tensor
    slope: Tensor


@dataclass(frozen=True)
class LinearRows:
    """All that the posteriors of a model's rows have in common; tensors on the CPU, in the dtype of the rows.

    The torch twin is `models.truncated.linear.Linear.posterior` and `moments`.
    """

    gram: Tensor
    """[H, H] WᵀW/σ²."""
    values: Tensor
    """[L] non-zero values of a latent."""
    tempered: Joints
    """Singletons at this temperature."""
    plain: Joints | None
    """The same at temperature 1, where that is another."""
    rules: tuple[Tensor, Tensor]
    """Constants and slopes [R, H]: candidates are the atoms of largest max_r (constant + slope · b)."""
    candidates: int
    """H'."""
    active: int
    """γ."""
    beta: float
    """Inverse temperature of the likelihood."""

    padded: int = field(init=False)
    _tree: StateTree = field(init=False)
    _tables: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        atoms, lanes = len(self.gram), LANES_BYTES // self.gram.element_size()
        padded = -(-atoms // lanes) * lanes
        fill = lambda t, value: aligned(torch.nn.functional.pad(t, (0, padded - atoms), value=value))  # noqa: E731
        plain = self.plain or self.tempered
        tables = (
            fill(self.tempered.constant, -1e30),
            self.tempered.slope.contiguous(),
            fill(plain.constant, -1e30),
            plain.slope.contiguous(),
            fill(self.rules[0], float("-inf")),
            fill(self.rules[1], 0.0),
        )
        object.__setattr__(self, "padded", padded)
        object.__setattr__(self, "_tables", tables)
        object.__setattr__(self, "_tree", state_tree(self.candidates, self.active, len(self.values)))

    def run(
        self,
        scores: Tensor,
        chosen: Tensor,
        log_z: Tensor,
        log_evidence: Tensor,
        *,
        given: bool = False,
        use: Tensor | None = None,
        pairs: Tensor | None = None,
    ) -> Tensor:
        """Candidates, joints, their softmax and its moments.

        Args:
            scores: [n, H] b = Wᵀy; overwritten by the means <s> (0 for rows not in use) where `pairs` is given.
            chosen: [n, H'] int64 candidates: written, or read where `given`.
            log_z: [n] float64, gets log Σ exp of the tempered joints relative to the empty state's.
            log_evidence: [n] float64, gets the same at temperature 1.
            given: Whether the candidates are given.
            use: [n] uint8, 1 for rows that count for the moments; all by default.
            pairs: [H, H] float64, to which Σ <s_i s_j> of pairs of candidates is added, at (i, j) or (j, i). Without
                it no moments are computed.

        Returns:
            [L, H] float64, Σ q(s_h = v) over the rows in use; zero without moments.
        """
        n, atoms = scores.shape
        lanes, levels, tree = LANES_BYTES // scores.element_size(), len(self.values), self._tree
        own, slope, plain_own, plain_slope, rule_own, rule_slope = self._tables
        moments = pairs is not None
        groups, count = -(-n // lanes), self.candidates * (self.candidates - 1) // 2
        between = aligned(scores.new_empty(groups * count * lanes if moments else 0))
        counts = torch.zeros(-(-n // PIECE), levels, atoms, dtype=torch.float64)
        native.call(
            "linear_rows", scores, n, atoms, self.padded, self.gram, self.values, levels,
            own, slope, plain_own, plain_slope, int(self.plain is not None), rule_own, rule_slope, len(rule_own),
            float(self.beta), tree.begin, tree.start, tree.parent, tree.level, tree.state, self.candidates,
            chosen, int(given), torch.ones(n, dtype=torch.uint8) if use is None else use, log_z, log_evidence,
            int(moments), between, counts, PIECE, counts if pairs is None else pairs,
        )  # fmt: skip
        return counts.sum(0)


def aligned(t: Tensor) -> Tensor:
    """The same values at an address that whole vectors may be loaded from."""
    if t.is_contiguous() and t.data_ptr() % LANES_BYTES == 0:
        return t
    room = t.new_empty(t.numel() + LANES_BYTES)
    skip = -room.data_ptr() % LANES_BYTES // t.element_size()
    return room[skip : skip + t.numel()].copy_(t.reshape(-1)).view(t.shape)
