"""Truncated posteriors of models that superpose atoms by a maximum, fused: from the data to shares and probabilities.

Shapes: n rows of a block, D observed, H atoms, H' candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import native
from .linear import LANES_BYTES, aligned
from .tree import StateTree, state_tree


@dataclass(frozen=True, slots=True)
class MaximalSums:
    """What a block's rows add up to; all float64."""

    single: Tensor
    """[n, H] probabilities of the singletons (with `marginals`: of any state that holds the atom), in the dtype of the
    rows; 0 for rows that are not in use."""
    square: Tensor
    """[n] ‖y‖²."""
    log_z: Tensor
    """[n] log Σ exp of the tempered joints relative to the empty state's."""
    log_evidence: Tensor
    """[n] the same at temperature 1."""
    residual: Tensor
    """[n] <‖y - ȳ‖²>, 0 for rows that are not in use."""
    active: Tensor
    """[n] <|s|>, 0 for rows that are not in use."""


@dataclass(frozen=True)
class MaximalRows:
    """All that the posteriors of a model's rows have in common; tensors on the CPU, in the dtype of the rows.

    The torch twin is `models.truncated.maximal.Maximal.posterior` and `statistics`.
    """

    weights: Tensor
    """[D, H] W."""
    signed: bool
    """Whether the value of largest magnitude wins, or the largest."""
    rho: float | None
    """Exponent of the smoothed maximum; None: the maximum itself."""
    rank: tuple[Tensor, Tensor]
    """Scale and shift [H]: candidates are the largest of scale · v + shift, v the overshoot Σ_d max(W_dh - y_d, 0), or,
    where signed, the score Wᵀy."""
    candidates: int
    """H'."""
    active: int
    """γ."""
    precision: float
    """1/σ²."""
    logit: float
    """Of π."""
    beta: float
    """Inverse temperature of the likelihood."""
    heat: float
    """Inverse temperature of the prior."""

    _tree: StateTree = field(init=False)
    _tables: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        lanes = LANES_BYTES // self.weights.element_size()
        columns = torch.nn.functional.pad(self.weights.T, (0, -len(self.weights) % lanes))
        logs = columns.abs().clamp(min=torch.finfo(columns.dtype).tiny).log() if self.rho else columns
        energy = self.weights.square().sum(0)
        tables = (aligned(columns), aligned(logs), energy, *(t.contiguous() for t in self.rank))
        object.__setattr__(self, "_tables", tables)
        object.__setattr__(self, "_tree", state_tree(self.candidates, self.active, 1))

    def run(
        self,
        x: Tensor,
        scores: Tensor,
        *,
        candidates: Tensor | None = None,
        use: Tensor | None = None,
        shares: tuple[Tensor, Tensor] | None = None,
        marginals: bool = False,
    ) -> MaximalSums:
        """Candidates, joints, their softmax and the shares of atoms.

        Args:
            x: [n, D] rows.
            scores: [n, H] Wᵀy; overwritten by probabilities where moments are wanted.
            candidates: [n, H'] int64, used instead of choosing them.
            use: [n] bool, rows that count for the moments; all by default.
            shares: Two [H, D] float64, to which Σ <A_hd> and Σ <A_hd> y_d over states of several atoms are added.
            marginals: Whether only the atoms' probabilities are wanted.
        """
        (n, dim), atoms, tree = x.shape, scores.shape[1], self._tree
        lanes = LANES_BYTES // x.element_size()
        wide, moments = self._tables[0].shape[1], marginals or shares is not None
        chosen = torch.empty(n, self.candidates, dtype=torch.int64) if candidates is None else candidates.contiguous()
        square, log_z, log_evidence, residual, active = torch.zeros(5, n, dtype=torch.float64).unbind()
        each = x.new_empty(n if shares is not None else 0, self.candidates, wide)
        used = torch.ones(n, dtype=torch.uint8) if use is None else use.to(torch.uint8)
        a, ay = (square, square) if shares is None else shares
        native.call(
            "maximal_rows", x, n, dim, atoms, wide, -(-atoms // lanes) * lanes, self.candidates,
            tree.begin, tree.start, tree.parent, tree.last, tree.state, tree.size, *self._tables,
            float(self.rho or 0.0), float(self.precision), float(self.logit), float(self.beta), float(self.heat),
            int(self.signed), int(self.beta != 1.0), scores, chosen, int(candidates is not None),
            used, square, log_z, log_evidence, residual, active, int(moments), int(marginals), each, a, ay,
        )  # fmt: skip
        return MaximalSums(scores, square, log_z, log_evidence, residual, active)
