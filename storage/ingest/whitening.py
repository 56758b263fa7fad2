"""Whitening learned from streamed moments: x = (p - mean) @ whiten, and back p ≈ x @ unwhiten + mean; and before it,
each row's own mean and contrast removed.

Shapes: N rows, D0 numbers in a row of the source, D after whitening, K directions kept.
With the covariance V diag(λ) Vᵀ, the largest λ that make up the fraction `keep` of the variance, and
r = λ + epsilon · mean(kept λ), zca is s · V diag(r^-1/2) Vᵀ [D0, D0] and pca s · V diag(r^-1/2) [D0, K]
(Bell & Sejnowski 1997); s makes the mean variance over the K kept directions 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from ..errors import BadData

MAX_DIM = 8192
"""Largest D0 that is whitened: its covariance takes 0.5 GB, its eigenvectors minutes."""
SLAB_ROWS = 4096
CONTRAST_FLOOR = 10 / 255**2
"""Added to a row's variance before division, so that noise in flat rows stays small (Coates & Ng 2012)."""

Kind = Literal["zca", "pca", "none"]


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean [D0] and scatter Σ (p - mean)(p - mean)ᵀ [D0, D0] in float64; they add as Chan et al. (1983) do.

    `scatter` has shape [0, 0] where only the mean is wanted.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, block: np.ndarray, *, scatter: bool) -> Self:
        """Moments of the rows of `block` [n, D0], n ≥ 1."""
        total = cls._of_slab(block[:SLAB_ROWS], scatter)
        for at in range(SLAB_ROWS, len(block), SLAB_ROWS):  # slabs bound the float64 copies
            total = total + cls._of_slab(block[at : at + SLAB_ROWS], scatter)
        return total

    @classmethod
    def _of_slab(cls, block: np.ndarray, scatter: bool) -> Self:
        wide = block.astype(np.float64)
        mean = wide.mean(axis=0)
        wide -= mean
        return cls(len(block), mean, wide.T @ wide if scatter else np.zeros((0, 0)))

    def __add__(self, other: Self) -> Self:
        count = self.count + other.count
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter
        if scatter.size:
            scatter += np.outer(step, step * (self.count * other.count / count))
        return type(self)(count, self.mean + step * (other.count / count), scatter)


@dataclass(frozen=True, slots=True)
class Whitening:
    """Mean [D0] and, with whitening, `whiten` [D0, D] and `unwhiten` [D, D0], all float64."""

    mean: np.ndarray
    whiten: np.ndarray | None = None
    unwhiten: np.ndarray | None = None

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """(p - mean) @ whiten for the rows of `block` [n, D0], in the block's own dtype: [n, D]. Uses `block` up."""
        block -= self.mean.astype(block.dtype)
        return block if self.whiten is None else block @ self.whiten.astype(block.dtype)

    @property
    def dim(self) -> int:
        """D."""
        return len(self.mean) if self.whiten is None else self.whiten.shape[1]

    @property
    def side(self) -> dict[str, np.ndarray]:
        """The arrays to keep beside the data."""
        named = {"mean": self.mean, "whiten": self.whiten, "unwhiten": self.unwhiten}
        return {name: array for name, array in named.items() if array is not None}


def remove_mean(rows: np.ndarray, *, dc: bool, contrast: bool) -> np.ndarray:
    """Rows [n, D0] without their own mean (`dc`), divided by their own standard deviation (`contrast`)."""
    mean = rows.mean(axis=1, keepdims=True)
    if contrast:
        scale = np.sqrt(rows.var(axis=1, keepdims=True) + np.float32(CONTRAST_FLOOR))
        return (rows - mean) / scale + (0 if dc else mean)
    return rows - mean if dc else rows


def check_dim(dim: int, kind: Kind) -> None:
    """BadData when rows are too wide for `kind`."""
    if kind != "none" and dim > MAX_DIM:
        gigabytes = 8 * dim**2 / 1e9
        raise BadData(
            f"whiten={kind}: rows of {dim} numbers would need a covariance of {gigabytes:.1f} GB; "
            f"at most {MAX_DIM} are whitened: take smaller patches, or whiten=none"
        )


def learn_whitening(moments: Moments, kind: Literal["zca", "pca"], *, keep: float, epsilon: float) -> Whitening:
    """The whitening of data with these moments. BadData when nothing varies."""
    if moments.count < 2:
        raise BadData(f"whiten={kind} needs at least 2 rows to learn a covariance, got {moments.count}: whiten=none")
    values, vectors = np.linalg.eigh(moments.scatter / (moments.count - 1))
    values, vectors = values[::-1], vectors[:, ::-1]
    # What rounding leaves of directions without variance (the mean of a patch, once removed) must not be amplified.
    real = int((values > 1e-10 * max(values[0], 0.0)).sum())
    if not real or values[0] <= 0:
        raise BadData(f"whiten={kind}: all rows are equal, there is no variance to whiten: whiten=none")
    share = np.cumsum(values[:real]) / values[:real].sum()
    kept = min(real, int(np.searchsorted(share, keep * (1 - 1e-12))) + 1)
    values, vectors = values[:kept], vectors[:, :kept]
    strength = values + epsilon * values.mean()
    root = np.sqrt(strength / (kept / (values / strength).sum()))
    whiten, unwhiten = vectors / root, (vectors * root).T
    if kind == "zca":
        whiten, unwhiten = whiten @ vectors.T, vectors @ unwhiten
    return Whitening(moments.mean, np.ascontiguousarray(whiten), np.ascontiguousarray(unwhiten))
