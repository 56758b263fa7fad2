"""Autoencoders that keep k entries of every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..base import Params
from ..errors import ModelError
from .autoencoder import Autoencoder
from .selection import largest


@dataclass(frozen=True, kw_only=True)
class TopK(Autoencoder):
    """TopK autoencoder: the k largest of relu(u) (Gao et al. 2024, "Scaling and evaluating sparse autoencoders")."""

    k: int = 32
    """Active latents per row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.atoms:
            raise ModelError(f"k={self.k} active latents of atoms={self.atoms}: choose k from 1 to {self.atoms}")

    def select(self, params: Params, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.select`."""
        return largest(u, self.k, signed=self.signed)

    def slots(self) -> int:
        """k, or `code_width`."""
        return min(self.k, self.code_width or self.k)


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

    def select(self, params: Params, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.select`."""
        size = self.atoms // self.k
        best = u.view(u.shape[0], self.k, size).max(2)
        first = torch.arange(0, self.atoms, size, device=u.device)
        return best.indices + first, best.values.clamp_(min=0)
