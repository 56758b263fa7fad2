"""The Matryoshka autoencoder (Bussmann et al. 2025): the first latents must do alone, so that they stay general."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..base import Params
from ..errors import ModelError
from ..kernels import Gradients
from ..schedule import Stage
from .batch import BatchTopK
from .sparse import Code, SparseCode, make_code
from .sums import GradientSums, Rows


@dataclass(frozen=True, kw_only=True)
class Matryoshka(BatchTopK):
    """Matryoshka autoencoder: BatchTopK whose loss is the mean over nested dictionaries, `widths[p]` latents each.

    The order of latents matters. Metrics and AuxK speak of the whole dictionary.
    """

    widths: tuple[int, ...] | None = None
    """Latents of each nested dictionary, rising, H the last; None: 1/32, 3/32, 7/32, 15/32 of H, and H."""

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = self.widths
        if widths is None:
            return
        if not widths or widths[-1] != self.atoms or any(b <= a for a, b in pairwise((0, *widths))):
            raise ModelError(f"widths={list(widths)} must rise from above 0 to atoms={self.atoms}")

    def bands(self) -> list[tuple[int, int]]:
        """First and last (exclusive) latent of what each nested dictionary adds."""
        parts = self.widths or [*(self.atoms * share // 32 for share in (1, 3, 7, 15)), self.atoms]
        return list(pairwise(sorted({0, *parts})))

    def add_rows(self, sums: GradientSums, params: Params, rows: Rows, stage: Stage) -> Tensor:
        """See `Autoencoder.add_rows`."""
        indices, values = self.code(params, rows, stage)
        sums.l1.add_(SparseCode(indices, values).count(sums.fired, sums.negative))
        decoder, bands = params["W_dec"], self.bands()
        # Every entry belongs to one band, so that all prefixes together cost one decoding.
        codes: list[Code] = []
        errors = [-rows.targets]
        for first, last in bands:
            inside = (indices >= first) & (indices < last)
            codes.append(
                make_code((indices - first).masked_fill_(~inside, 0), values.masked_fill(~inside, 0), last - first)
            )
            errors.append(errors[-1] + codes[-1].decode(decoder[first:last]))
        upstream = rows.targets.new_zeros(rows.targets.shape)
        for (first, last), code, error in zip(bands[::-1], codes[::-1], errors[:0:-1], strict=True):
            upstream.add_(error, alpha=2 / len(bands))
            into = Gradients(*(t[first:last] for t in (sums.decoder, sums.encoder, sums.encoder_bias)))
            code.add_gradients(into, decoder[first:last], upstream, rows.inputs)
        sums.decoder_bias.add_(upstream.sum(0))
        return errors[-1]
