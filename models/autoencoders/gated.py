"""The gated autoencoder (Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders"):
whether a latent is active and how much are decided apart, so that the penalty does not shrink values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..base import Params
from ..kernels import Gradients
from ..schedule import Stage
from .relu import Elementwise, code_of
from .selection import product
from .sums import GradientSums, Rows

SIZE, BIAS = 0, 1
"""Rows of the tallies: gradients of r_mag and b_mag."""


@dataclass(frozen=True, kw_only=True)
class Gated(Elementwise):
    """Gated autoencoder: whether a latent is active and how much are decided apart.

    z = [u > 0] relu(exp(r_mag) a + b_mag), where u = a + b_enc is the gate and a = W_enc (s x - b_dec).

    The loss adds `sparsity` Σ relu(u) and |s x - W_dec^T relu(u) - b_dec|^2 with W_dec and this b_dec held constant,
    which teach the gate.
    """

    own: ClassVar[tuple[str, ...]] = ("r_mag", "b_mag")
    tallies: ClassVar[int] = 2

    def own_start(self, bias: Tensor) -> Params:
        """Magnitude and gate start equal."""
        return {"r_mag": torch.zeros_like(bias), "b_mag": bias.clone()}

    def activate(self, params: Params, u: Tensor) -> Tensor:
        """See `Elementwise.activate`."""
        size = torch.addcmul(params["b_mag"], u - params["b_enc"], params["r_mag"].exp())
        return size.relu_().masked_fill_(u <= 0, 0)

    def add_rows(self, sums: GradientSums, params: Params, rows: Rows, stage: Stage) -> Tensor:
        """See `Autoencoder.add_rows`."""
        u = product(rows.inputs, params["W_enc"], params["b_enc"], self.rounding)
        decoder = params["W_dec"]
        code = code_of(self.activate(params, u))
        error = code.decode(decoder).sub_(rows.targets)
        upstream = 2 * error
        # The encoder's part is the gradient by exp(r_mag) a + b_mag.
        found = Gradients(sums.decoder, torch.zeros_like(sums.encoder), torch.zeros_like(sums.encoder_bias))
        code.add_gradients(found, decoder, upstream, rows.inputs)
        sums.decoder_bias.add_(upstream.sum(0))
        sums.l1.add_(code.count(sums.fired, sums.negative))
        size = params["r_mag"].exp()
        found.encoder.mul_(size[:, None])
        sums.encoder.add_(found.encoder)
        sums.tallies[SIZE].add_((found.encoder * params["W_enc"]).sum(1))
        sums.tallies[BIAS].add_(found.bias)
        gate = code_of(u.relu_())
        constant = Gradients(torch.zeros_like(decoder), sums.encoder, sums.encoder_bias)
        missed = gate.decode(decoder).sub_(rows.targets).mul_(2)
        gate.add_gradients(constant, decoder, missed, rows.inputs, self.weight(stage))
        return error

    def own_gradients(self, params: Params, sums: GradientSums, stage: Stage) -> Params:
        """Those of the magnitude."""
        return {"r_mag": sums.tallies[SIZE], "b_mag": sums.tallies[BIAS]}

    def pull(self, params: Params, sums: GradientSums) -> Tensor:
        """See `Autoencoder.pull`: through the gate and through the magnitude."""
        return sums.encoder_bias + params["r_mag"].exp() * sums.tallies[BIAS]
