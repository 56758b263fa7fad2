"""Maximal causes analysis: see maximal.py, where what it shares with mmca is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import ModelError
from .maximal import TILE_ELEMENTS, Maximal

TIE = 1e-5
"""How much of an atom's mean size decides between atoms that exceed a point equally."""


@dataclass(frozen=True, kw_only=True)
class MCA(Maximal):
    """Maximal causes analysis: the largest of the active atoms, which are not negative, in every dimension."""

    select: Literal["overshoot", "relative"] = "overshoot"
    """Candidates are the atoms that exceed the point least, or least relative to their own sum."""

    def __post_init__(self) -> None:
        Maximal.__post_init__(self)
        if self.select not in ("overshoot", "relative"):
            raise ModelError(f"select={self.select!r}: choose overshoot or relative")

    def rank(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """As `choose`."""
        total = weights.sum(0)
        if self.select == "relative":
            return -1 / total.clamp(min=1e-30), TIE * total / total.mean()
        return -torch.ones_like(total), TIE * total

    def choose(self, weights: Tensor, x: Tensor, scores: Tensor, energy: Tensor) -> Tensor:
        """The smallest Σ_d max(W_dh - y_d, 0); of several, the largest atom."""
        total = weights.sum(0)
        if energy.ndim == 2:
            gone = torch.isnan(x)
            # Nothing exceeds infinity.
            total, x = (~gone).to(x.dtype) @ weights, x.masked_fill(gone, float("inf"))
        over = x.new_empty(self.atoms, len(x))
        rows = max(1, TILE_ELEMENTS // (8 * x.shape[1]))
        for a in range(0, len(x), rows):
            excess = torch.empty_like(x[a : a + rows])
            for h in range(self.atoms):
                torch.sub(weights[:, h], x[a : a + rows], out=excess).clamp_(min=0)
                torch.sum(excess, 1, out=over[h, a : a + rows])
        # Many atoms may overshoot a bright point by nothing at all.
        if self.select == "relative":
            score = over.T / total.clamp(min=1e-30) - TIE * total / total.mean()
        else:
            score = over.T - TIE * total
        return score.topk(self.candidates, dim=1, largest=False).indices
