"""Autoencoders whose latents decide each for itself: here pre-activations are dense, and codes as far as they are."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..base import Params
from ..errors import ModelError
from ..kernels import pack
from ..schedule import Stage
from .autoencoder import Autoencoder
from .rates import warm_up
from .selection import chunk_rows
from .sparse import DENSE_FROM, Code, DenseCode, SparseCode
from .sums import GradientSums, Rows


@dataclass(frozen=True, kw_only=True)
class Elementwise(Autoencoder):
    """An activation of each pre-activation by itself, kept sparse by a penalty."""

    sparsity: float = 5.0
    """Weight of the sparsity penalty, which rises from 0 during the first 5 % of the run; a schedule for `sparsity`
    multiplies it."""

    ramp_names: ClassVar[tuple[str, ...]] = ("learning_rate", "sparsity")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sparsity >= 0:
            raise ModelError(f"sparsity={self.sparsity} must be 0 or more")

    @abstractmethod
    def activate(self, params: Params, u: Tensor) -> Tensor:
        """The codes [m, H] of pre-activations u [m, H], which stay as they are."""

    def add_more(self, sums: GradientSums, params: Params, rows: Rows, u: Tensor, error: Tensor, weight: float) -> None:
        """Add the gradients that are not those of the squared error by z; `weight` is that of the penalty now."""

    def slope(self, weight: float) -> float:
        """The penalty's derivative by an active value."""
        del weight
        return 0.0

    def add_rows(self, sums: GradientSums, params: Params, rows: Rows, stage: Stage) -> Tensor:
        """See `Autoencoder.add_rows`."""
        u = torch.addmm(params["b_enc"], rows.inputs, params["W_enc"].T)
        weight = self.weight(stage)
        error = self.fit(sums, params, code_of(self.activate(params, u)), rows, self.slope(weight))
        self.add_more(sums, params, rows, u, error, weight)
        return error

    def select(self, params: Params, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.select`."""
        values, indices = pack(self.activate(params, u), signed=self.signed)
        return indices, values

    def weight(self, stage: Stage) -> float:
        """The penalty's weight in one update."""
        return self.sparsity * warm_up(stage.step, stage.steps) * stage.get("sparsity", 1.0)

    def pieces(self, rows: int) -> int:
        """Rows whose [rows, H] arrays are held at once: four times those of a sparse selection."""
        return min(rows, 4 * chunk_rows(rows, self.atoms, self.torch_dtype.itemsize, torch.device("cpu")))

    def batch_bytes(self, rows: int, dim: int, item: int) -> int:
        """See `Autoencoder.batch_bytes`."""
        return super().batch_bytes(rows, dim, item) + 6 * self.pieces(rows) * self.atoms * item


@dataclass(frozen=True, kw_only=True)
class ReLU(Elementwise):
    """ReLU autoencoder: z = relu(u) with the penalty `sparsity` Σ z (Bricken et al. 2023)."""

    def activate(self, params: Params, u: Tensor) -> Tensor:
        """See `Elementwise.activate`."""
        return u.relu()

    def slope(self, weight: float) -> float:
        """See `Elementwise.slope`; atoms have norm 1."""
        return weight


def code_of(z: Tensor) -> Code:
    """The dense codes `z` [m, H] in the cheaper representation."""
    if DENSE_FROM * int(z.count_nonzero()) >= z.numel():
        return DenseCode(z)
    values, indices = pack(z, signed=True)
    return SparseCode(indices, values)
