"""All overlapping patches of one photograph as a data set, and a photograph again from rows that stand for them.

Patches are prepared as an ingest prepared those that a dictionary was learned on (mean and contrast removed,
whitened), and what was taken away is given back. Values are those of the photograph, in [0, 1]; NaN is a missing pixel.

Shapes: height h, width w, patches of p × p (× 3 with colour) = D0 numbers, D after whitening, N patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from .errors import BadData
from .ingest.images import cut
from .ingest.whitening import CONTRAST_FLOOR
from .layout import choose_layout
from .reader import Dataset
from .writer import create_dataset


@dataclass(frozen=True, slots=True)
class Preparation:
    """What was done to every patch before it became a row."""

    patch_shape: tuple[int, ...]
    dc: bool
    contrast: bool
    mean: np.ndarray | None
    whiten: np.ndarray | None
    unwhiten: np.ndarray | None

    @classmethod
    def of(cls, data: Dataset) -> Self:
        """How the rows of a data set were made from patches.

        Raises:
            BadData: its rows are no square patches, or they were filtered, which cannot be undone.
        """
        recipe: Any = data.attributes.get("recipe") or {}
        shape = data.patch_shape
        if shape is None or len(shape) not in (2, 3) or shape[0] != shape[1] or shape[2:] not in ((), (3,)):
            raise BadData(f"rows of {data.uri} are no square patches of photographs")
        if recipe.get("prefilter", "none") != "none":
            raise BadData(f"rows of {data.uri} were filtered (prefilter={recipe['prefilter']}), which cannot be undone")
        images = recipe.get("kind") == "images"
        return cls(
            patch_shape=shape,
            dc=images and bool(recipe.get("dc")),
            contrast=images and bool(recipe.get("contrast")),
            mean=data.side("mean"),
            whiten=data.side("whiten"),
            unwhiten=data.side("unwhiten"),
        )

    @property
    def size(self) -> int:
        """p."""
        return self.patch_shape[0]

    @property
    def color(self) -> bool:
        """Whether patches have three channels."""
        return len(self.patch_shape) == 3

    @property
    def dim(self) -> int:
        """D."""
        return int(np.prod(self.patch_shape)) if self.whiten is None else self.whiten.shape[1]

    def apply(self, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Patches [n, D0] as rows [n, D], and each one's level and scale [n], from its observed pixels."""
        level, scale = np.zeros(len(patches), np.float32), np.ones(len(patches), np.float32)
        if self.dc or self.contrast:
            mean = np.nanmean(patches, axis=1)
            level = mean if self.dc else level
            if self.contrast:
                scale = np.sqrt(np.nanvar(patches, axis=1) + np.float32(CONTRAST_FLOOR))
                patches = (patches - mean[:, None]) / scale[:, None] + (mean - level)[:, None]
            else:
                patches = patches - level[:, None]
        rows = patches if self.mean is None else patches - self.mean.astype(patches.dtype)
        rows = rows if self.whiten is None else rows @ self.whiten.astype(rows.dtype)
        return rows.astype(np.float32), level.astype(np.float32), scale.astype(np.float32)

    def undo(self, rows: np.ndarray, level: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Rows [n, D] as patches [n, D0] with their level and scale again."""
        patches = rows if self.unwhiten is None else rows @ self.unwhiten.astype(rows.dtype)
        patches = patches if self.mean is None else patches + self.mean.astype(patches.dtype)
        if self.contrast and not self.dc:
            mean = patches.mean(axis=1, keepdims=True)
            return (patches - mean) * scale[:, None] + mean
        return patches * scale[:, None] + level[:, None]


def cut_photo(pixels: np.ndarray, out: str, prepared: Preparation, *, stride: int) -> Dataset:
    """A data set of all patches of `pixels` [h, w] or [h, w, 3] at every `stride`-th position, edges included.

    Beside `data` it has `place` [N, 2] (row and column of the first pixel), `level` and `scale` [N]. Patches without
    any observed pixel are left out.

    Raises:
        BadData: the photograph is smaller than a patch, no pixel is observed, or whitened patches have missing pixels.
    """
    size, gone = prepared.size, np.isnan(pixels)
    if min(pixels.shape[:2]) < size:
        raise BadData(f"a patch of {size}×{size} does not fit into {pixels.shape[1]}×{pixels.shape[0]} pixels")
    if gone.any() and prepared.whiten is not None:
        raise BadData("whitened patches cannot have missing pixels: use a dictionary learned with whiten=none")
    seen = ~gone if gone.ndim == 2 else np.asarray(~gone.any(axis=2))
    places = _places(seen, size, stride)
    if not len(places):
        raise BadData("no pixel is left: everything is masked")
    shard_rows, chunk_rows = choose_layout(len(places), 4 * prepared.dim)
    writer = create_dataset(
        out,
        rows=len(places),
        arrays={
            "data": ((prepared.dim,), "float32"),
            "place": ((2,), "int32"),
            "level": ((), "float32"),
            "scale": ((), "float32"),
        },
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        attributes={"row": "patches of one photograph", "patch_shape": list(prepared.patch_shape), "stride": stride},
        missing=bool(gone.any()),
        overwrite=True,
    )
    for shard in writer.shards():
        place = places[shard.slice]
        patches = cut(pixels, size, place[:, 0], place[:, 1])
        rows, level, scale = prepared.apply(patches.reshape(len(place), -1))
        writer.write(shard, data=rows, place=place, level=level, scale=scale)
    return writer.finish()


def _places(seen: np.ndarray, size: int, stride: int) -> np.ndarray:
    """[N, 2] int32, first pixels of patches that see something; the last row and column of patches always count."""
    steps = [sorted({*range(0, n - size + 1, stride), n - size}) for n in seen.shape]
    y, x = (grid.ravel() for grid in np.meshgrid(*map(np.asarray, steps), indexing="ij"))
    total = np.pad(seen.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    count = total[y + size, x + size] - total[y, x + size] - total[y + size, x] + total[y, x]
    return np.stack([y, x], axis=1)[count > 0].astype(np.int32)


def merge_photo(
    patches: Dataset, rebuilt: Dataset, prepared: Preparation, shape: tuple[int, ...]
) -> tuple[np.ndarray, int]:
    """The mean over all patches that cover a pixel: float64 of `shape`, and how many pixels no patch covered.

    Those lie in holes larger than a patch; they get the mean of the others. `rebuilt` holds the rows of `patches`
    again, as its array `reconstruction`.
    """
    total, count = np.zeros(shape), np.zeros(shape[:2])
    for shard in patches.shards():
        read = lambda name, shard=shard: patches.read(shard.start, shard.stop, name)  # noqa: E731
        rows = rebuilt.read(shard.start, shard.stop, "reconstruction")
        undone = prepared.undo(rows, read("level"), read("scale")).reshape(len(shard), *prepared.patch_shape)
        y, x = read("place").T
        for i in range(prepared.size):
            for j in range(prepared.size):
                # Every patch has a place of its own, so no pixel is met twice here.
                total[y + i, x + j] += undone[:, i, j]
                count[y + i, x + j] += 1
    empty = count == 0
    out = total / np.where(empty, 1, count).reshape(*count.shape, *[1] * (len(shape) - 2))
    out[empty] = out[~empty].mean(axis=0)
    return out, int(empty.sum())
