"""An autoencoder with a selection of your own: as few latents as hold most of a row's energy.

    sparsefleet learn --data demo/patches.zarr --model own_selection:Nucleus --atoms 256 --set model.share=0.8

(run where this file lies, or with --module-path). Everything else is TopK's: AuxK, Adam, resuming, engines.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsefleet.models import ModelError, Params
from sparsefleet.models.autoencoders.topk import TopK
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Nucleus(TopK):
    """Of the k largest of relu(u) the first whose squares make up `share` of their sum."""

    share: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ModelError(f"share={self.share} must lie in (0, 1]")

    def select(self, params: Params, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        indices, values = super().select(params, u, raw)
        squares = values.square()
        before = squares.cumsum(1) - squares
        return indices, values.masked_fill(before >= self.share * squares.sum(1, keepdim=True), 0)
