"""Autoencoders that keep k entries of every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..base import Params
from ..errors import ModelError
from ..peers import Peers
from ..schedule import Stage
from .autoencoder import Autoencoder
from .selection import candidate_count, elected, exact, largest
from .sums import Rows


@dataclass(frozen=True, kw_only=True)
class TopK(Autoencoder):
    """TopK autoencoder: the k largest of relu(u) (Gao et al. 2024, "Scaling and evaluating sparse autoencoders")."""

    k: int = 32
    """Active latents per row."""

    atom_parallel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.atoms:
            raise ModelError(f"k={self.k} active latents of atoms={self.atoms}: choose k from 1 to {self.atoms}")

    def select(self, params: Params, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.select`."""
        return largest(u, candidate_count(self.k, self.held, self.rounding), signed=self.signed)

    def exact(self, params: Params, inputs: Tensor, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.exact`; the k largest of them."""
        if self.rounding is None:
            return indices, values
        return exact(indices, inputs, params["W_enc"], params["b_enc"], min(self.k, self.held), signed=self.signed)

    def code(self, params: Params, rows: Rows, stage: Stage | None) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.code`: of what every peer would keep, the k largest of all."""
        indices, values = super().code(params, rows, stage)
        return indices, elected(self.peers, values, self.k, signed=self.signed)

    def offered(self) -> int:
        """Up to k values."""
        return min(self.k, self.held)

    def slots(self) -> int:
        """k, or `code_width`."""
        return min(self.k, self.code_width or self.k)

    def entries(self) -> int:
        """k, or all latents of this worker."""
        return min(self.k, self.held)


@dataclass(frozen=True, kw_only=True)
class AbsTopK(TopK):
    """AbsTopK autoencoder (2025): the k entries of u of largest magnitude, with their signs.

    This is hard thresholding; one latent can stand for both poles of a concept. (atom, code) and (-atom, -code) mean
    the same.
    """

    signed: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class GroupMax(TopK):
    """GroupMax autoencoder: the largest of relu(u) in each of k groups of H / k latents that follow one another."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.atoms % self.k:
            raise ModelError(f"k={self.k} groups of atoms={self.atoms}: choose a k that divides it")

    def sliced(self, peers: Peers) -> Self:
        """See `Autoencoder.sliced`; every peer needs whole groups, and selects in them alone."""
        if self.k % peers.size:
            raise ModelError(f"atom_groups={peers.size} do not divide the k={self.k} groups: choose a number that does")
        return super().sliced(peers)

    def select(self, params: Params, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.select`."""
        size = self.atoms // self.k
        best = u.view(u.shape[0], self.held // size, size).max(2)
        first = torch.arange(0, self.held, size, device=u.device)
        return best.indices + first, best.values.clamp_(min=0)

    def code(self, params: Params, rows: Rows, stage: Stage | None) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.code`."""
        return Autoencoder.code(self, params, rows, stage)

    def offered(self) -> int:
        """None."""
        return 0
