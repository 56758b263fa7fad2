"""JumpReLU (Rajamanoharan et al. 2024, "Jumping ahead"): a threshold for every latent, learned through its jump."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..base import Params
from ..errors import ModelError
from ..kernels import inner_products, pack
from ..schedule import Stage
from .relu import Elementwise
from .sparse import DENSE_FROM
from .sums import GradientSums, Rows

FIT, COUNT = 0, 1
"""Rows of the tallies: the thresholds' gradient of the squared error, and of the number of active latents."""


@dataclass(frozen=True, kw_only=True)
class JumpReLU(Elementwise):
    """JumpReLU autoencoder: z = u where u exceeds the latent's learned threshold θ, else 0.

    Penalties: "step" is `sparsity` L0; "target" is `sparsity` (mean L0 / `l0` - 1)^2.

    Straight-through estimators with a rectangle K of width ε = `bandwidth` stand for the derivatives of the jump:
    dz/dθ = -(θ/ε) K((u - θ)/ε) and d[u > θ]/dθ = -(1/ε) K((u - θ)/ε). They are summed over the batch. θ itself is the
    parameter, at least 0 after every step; its logarithm would hardly move under Adam.
    """

    sparsity: float = 1.0
    """Weight of the sparsity penalty, which rises from 0 during the first 5 % of the run; a schedule for `sparsity`
    multiplies it."""
    penalty: Literal["step", "target"] = "step"
    """What is penalized."""
    l0: float = 32.0
    """Active latents of a row that the penalty "target" aims at."""
    bandwidth: float = 0.05
    """ε, in units of scaled pre-activations."""
    start_threshold: float = 0.01
    """θ before the first update, in the same units."""
    betas: tuple[float, float] = (0.0, 0.999)
    """Adam's decay rates."""

    own: ClassVar[tuple[str, ...]] = ("threshold",)
    tallies: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize == "none":
            raise ModelError('normalize="none": bandwidth and thresholds need data of known scale; use "scalar"')
        if self.penalty not in ("step", "target"):
            raise ModelError(f"penalty={self.penalty!r}: choose step or target")
        for name in ("l0", "bandwidth"):
            if not getattr(self, name) > 0:
                raise ModelError(f"{name}={getattr(self, name)} must be above 0")
        if self.penalty == "target" and self.l0 > self.atoms:
            raise ModelError(
                f"l0={self.l0} active latents of atoms={self.atoms}: choose l0 above 0 and at most {self.atoms}"
            )
        if not self.start_threshold >= 0:
            raise ModelError(f"start_threshold={self.start_threshold} must be 0 or more")

    def own_start(self, bias: Tensor) -> Params:
        """θ."""
        return {"threshold": torch.full_like(bias, self.start_threshold)}

    def activate(self, params: Params, u: Tensor) -> Tensor:
        """See `Elementwise.activate`."""
        return u.masked_fill(u <= params["threshold"], 0)

    def add_more(self, sums: GradientSums, params: Params, rows: Rows, u: Tensor, error: Tensor, weight: float) -> None:
        """The thresholds' gradients, from the entries that are near them."""
        theta = params["threshold"]
        near = ((u - theta).abs_() < self.bandwidth / 2).to(u.dtype)
        counts = near.sum(0)
        upstream = 2 * error
        if DENSE_FROM * float(counts.sum()) >= near.numel():
            pulls = (upstream @ params["W_dec"].T).mul_(near).sum(0)
        else:
            marks, indices = pack(near, signed=False)
            found = inner_products(indices, params["W_dec"], upstream) * marks
            pulls = torch.zeros_like(counts).index_add_(0, indices.flatten(), found.flatten())
        sums.tallies[FIT].sub_(theta / self.bandwidth * pulls)
        sums.tallies[COUNT].sub_(counts / self.bandwidth)

    def own_gradients(self, params: Params, sums: GradientSums, stage: Stage) -> Params:
        """The thresholds' gradient; the target's factor needs the mean L0 of all rows."""
        weight = self.weight(stage)
        if self.penalty == "target":
            weight *= 2 * (float(sums.fired.sum() / sums.rows) / self.l0 - 1) / self.l0
        return {"threshold": sums.tallies[FIT] + weight * sums.tallies[COUNT]}

    def finish(self, params: Params, sums: GradientSums, stage: Stage) -> Params:
        """See `Elementwise.finish`; θ >= 0."""
        above = {"threshold": params["threshold"].clamp(min=0)}
        return above | super().finish(params | above, sums, stage)
