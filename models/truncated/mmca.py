"""Maximum-magnitude causes analysis: see maximal.py, where what it shares with mca is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .maximal import Maximal


@dataclass(frozen=True, kw_only=True)
class MMCA(Maximal):
    """Maximum-magnitude causes analysis: in every dimension the active atom of largest magnitude, with its sign."""

    inertia: bool = True
    """Whether entries of W that few points dominate change slowly."""

    signed: ClassVar[bool] = True
    sharpest: ClassVar[float] = 1.2

    def rank(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """As `choose`."""
        energy = weights.square().sum(0)
        return torch.full_like(energy, 2.0), -energy

    def choose(self, weights: Tensor, x: Tensor, scores: Tensor, energy: Tensor) -> Tensor:
        """The smallest ‖W_h - y‖²."""
        distance = energy - 2 * scores
        return distance.topk(self.candidates, dim=1, largest=False).indices

    def inert(self, old: Tensor, new: Tensor, seen: Tensor) -> Tensor:
        """η W + (1-η) W_old with η = max(1 - exp(-points/2.5), 0.2)."""
        if not self.inertia:
            return new
        rate = (1 - torch.exp(-seen / 2.5)).clamp(min=0.2)
        return torch.lerp(old, new, rate)
