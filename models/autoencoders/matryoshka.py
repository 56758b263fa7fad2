"""The Matryoshka autoencoder (Bussmann et al. 2025): the first latents must do alone, so that they stay general."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..base import Params
from ..errors import ModelError
from ..kernels import Gradients
from ..peers import total
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
        decoder, bands = params["W_dec"], self._held_bands()
        # Every entry belongs to one band, so that all prefixes together cost one decoding.
        codes: list[Code | None] = []
        errors = rows.targets.new_zeros(len(bands), *rows.targets.shape)
        for band, error in zip(bands, errors, strict=True):
            codes.append(_code_in(band, indices, values))
            if codes[-1] is not None:
                error.copy_(codes[-1].decode(decoder[slice(*band)]))
        errors = total(self.peers, errors)
        errors[0].sub_(rows.targets)
        for before, error in pairwise(errors):
            error.add_(before)
        upstream = rows.targets.new_zeros(rows.targets.shape)
        for band, code, error in zip(bands[::-1], codes[::-1], errors.unbind()[::-1], strict=True):
            upstream.add_(error, alpha=2 / len(bands))
            if code is not None:
                into = Gradients(*(t[slice(*band)] for t in (sums.decoder, sums.encoder, sums.encoder_bias)))
                code.add_gradients(into, decoder[slice(*band)], upstream, rows.inputs)
        self.add_bias(sums, upstream)
        return errors[-1]

    def peer_bytes(self, rows: int, dim: int) -> int:
        """See `Model.peer_bytes`: each nested dictionary's reconstructions."""
        one = int(rows * dim / len(self.arrays)) * self.torch_dtype.itemsize * 2 * (self.peers.size - 1)
        return super().peer_bytes(rows, dim) + (len(self.bands()) - 1) * one // self.peers.size

    def _held_bands(self) -> list[tuple[int, int]]:
        """The parts of `bands` on this worker, counted from its first latent; empty ones included."""
        inside = lambda latent: min(max(latent - self.first, 0), self.held)  # noqa: E731
        return [(inside(first), inside(last)) for first, last in self.bands()]


def _code_in(band: tuple[int, int], indices: Tensor, values: Tensor) -> Code | None:
    """The entries of a code within a band, counted from its first latent; None where the band has no latents."""
    first, last = band
    if first == last:
        return None
    inside = (indices >= first) & (indices < last)
    return make_code((indices - first).masked_fill_(~inside, 0), values.masked_fill(~inside, 0), last - first)
