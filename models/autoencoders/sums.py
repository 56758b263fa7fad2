"""The statistics of an autoencoder: the gradient of its loss summed over rows, and the sums behind its metrics."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..base import Params, Stats
from ..kernels import Gradients


@dataclass(frozen=True, slots=True)
class GradientSums(Stats):
    """Sums over rows, in scaled units. D numbers in, E numbers out, H latents."""

    encoder: Tensor
    """[H, D] gradient with respect to W_enc."""
    decoder: Tensor
    """[H, E] gradient with respect to W_dec, not yet projected."""
    encoder_bias: Tensor
    """[H]"""
    decoder_bias: Tensor
    """[E]"""
    tallies: Tensor
    """[T, H] further sums of a variant: gradients of its own weights, counts."""
    fired: Tensor
    """[H] rows in which a latent's code is not 0."""
    negative: Tensor
    """[H] rows in which it is below 0."""
    residual: Tensor
    """[E] sum of e = target - reconstruction."""
    squared: Tensor
    """Sum of |e|^2."""
    l1: Tensor
    """Sum of |code|."""
    auxiliary: Tensor
    """Sum of |e - prediction of the dead latents|^2; 0 while there are none."""
    rows: Tensor
    """Number of rows."""
    drawn: Tensor
    """[S, C + 1] rows that dead latents may begin anew along (`resampling.py`); S = 0 where none do."""

    @property
    def weights(self) -> Gradients:
        """The gradients of the two matrices and the encoder's bias, to be added to in place."""
        return Gradients(self.decoder, self.encoder, self.encoder_bias)


def zeros(params: Params, tallies: int) -> GradientSums:
    """The sums over no rows."""
    like = params["b_enc"]
    count, scalar = torch.zeros_like(like), like.new_zeros(())
    return GradientSums(
        encoder=torch.zeros_like(params["W_enc"], memory_format=torch.contiguous_format),
        decoder=torch.zeros_like(params["W_dec"], memory_format=torch.contiguous_format),
        encoder_bias=count.clone(),
        decoder_bias=torch.zeros_like(params["b_dec"]),
        tallies=like.new_zeros(tallies, like.shape[0]),
        fired=count,
        negative=count.clone(),
        residual=torch.zeros_like(params["b_dec"]),
        squared=scalar,
        l1=scalar.clone(),
        auxiliary=scalar.clone(),
        rows=scalar.clone(),
        drawn=like.new_zeros(0, 1),
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows as an autoencoder sees them."""

    inputs: Tensor
    """[n, D] scaled and centred: the encoder's product takes these."""
    targets: Tensor
    """[n, E] scaled and centred: what the decoder's sums shall be."""
    raw: Tensor
    """[n, …] the rows of the batch, all their columns."""
    memo: MutableMapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What a survey found out about these rows."""
