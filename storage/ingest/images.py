"""Random patches of photographs, as the rows of a data set.

Positions are uniform over all places where a patch fits, so every photograph counts by its area. Shapes: N patches of
patch × patch (× 3 with colour) = D0 numbers each, flattened row by row; grey values and colours lie in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ..errors import BadData, NotFound, StorageError
from ..layout import Shard
from ..reader import Dataset
from .build import Plan, Progress, WhitenedSource, build, claim, shard_layout
from .sources import file_fingerprint, find_files, scratch
from .whitening import Kind, remove_mean

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm")
SKLEARN = "sklearn:"
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
SAMPLE_ROWS = 200_000
MEMORY = 1 << 30
"""Bytes of decoded photographs that are held in memory."""
REDRAWS = 200


class ImagesSource(WhitenedSource):
    """An ingest of patches from photographs."""

    kind: Literal["images"] = "images"
    sources: Annotated[list[str], Field(min_length=1)]
    """Image files, folders (searched with all below), glob patterns; `sklearn:china.jpg`, `sklearn:photos`; files of an
    installed package, `package:NAME/PATTERN`."""
    patch: Annotated[int, Field(ge=2, le=512)] = 16
    """Side of a patch in pixels."""
    rows: Annotated[int, Field(ge=1)] = 50_000
    """N, how many patches are drawn."""
    color: bool = False
    """Keep red, green and blue; otherwise luminance."""
    prefilter: Literal["none", "dog"] = "none"
    """`dog`: a 9×9 difference of Gaussians over the photograph first (Bornschein et al. 2013)."""
    dc: bool = True
    """Remove each patch's own mean."""
    contrast: bool = False
    """Divide each patch by its own standard deviation (with a small floor)."""
    min_std: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Patches with a smaller standard deviation are drawn again (0.01: blank sky goes, faint texture stays)."""
    whiten: Kind = "zca"
    epsilon: Annotated[float, Field(ge=0)] = 0.5
    """Added to the variances before their roots are inverted, in units of their mean: noise is not blown up."""
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Shape of one patch."""
        return (self.patch, self.patch, 3) if self.color else (self.patch, self.patch)


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded photograph: `pixels` float32 [height, width] or [height, width, 3]."""

    name: str
    pixels: np.ndarray

    def places(self, patch: int) -> tuple[int, int]:
        """How many positions a patch has, down and across. BadData when it does not fit."""
        height, width = self.pixels.shape[:2]
        if min(height, width) < patch:
            raise BadData(f"{self.name} has {width}×{height} pixels: a patch of {patch}×{patch} does not fit")
        return height - patch + 1, width - patch + 1


def ingest_images(job: ImagesSource, progress: Progress) -> Dataset:
    """Makes (or continues) the data set of patches.

    Raises:
        NotFound: a source is not there.
        BadData: a file is no image, a patch does not fit, or no patch varies enough.
        StorageError: the place is taken or cannot be written, or a package is missing.
    """
    paths = find_images(job.sources)
    dim = int(np.prod(job.patch_shape))
    shard_rows, chunk_rows = shard_layout(job.rows, dim, "float32", job.shard_rows)
    attributes: dict[str, Any] = {
        # The draws belong to shards: with other shards these would be other patches.
        "recipe": job.model_dump(exclude={"sources", "out", "overwrite"}) | {"shard_rows": shard_rows},
        "sources": [file_fingerprint(path) for path in paths],
        "patch_shape": list(job.patch_shape),
        "row": f"patch of a photograph, {'red, green, blue' if job.color else 'luminance'} in [0, 1] before whitening",
    }
    claim(job.out, attributes, overwrite=job.overwrite)
    with scratch(job.out) as folder:
        sampler = PatchSampler(_read_photos(paths, job, folder, progress), job)
        sampler.block(Shard(0, 0, min(64, job.rows)))  # refuses photographs without texture before anything is written
        plan = Plan(
            out=job.out,
            overwrite=job.overwrite,
            rows=job.rows,
            dim=dim,
            dtype="float32",
            shard_rows=shard_rows,
            chunk_rows=chunk_rows,
            attributes=attributes,
            block=sampler.block,
            center=False,
            whiten=job.whiten,
            keep=job.keep,
            epsilon=job.epsilon,
            sample_rows=SAMPLE_ROWS,
        )
        return build(plan, progress)


def _read_photos(paths: Sequence[Path], job: ImagesSource, folder: Path, progress: Progress) -> list[Photo]:
    """All photographs; beyond a budget their pixels lie in files in `folder`, mapped into memory."""
    photos: list[Photo] = []
    held = 0
    for number, path in enumerate(paths):
        progress(number, len(paths), "reading photographs")
        photo = read_photo(path, color=job.color, prefilter=job.prefilter == "dog")
        photo.places(job.patch)
        held += photo.pixels.nbytes
        if held > MEMORY:
            spilled = folder / f"{number}.npy"
            np.save(spilled, photo.pixels)
            photo = Photo(photo.name, np.load(spilled, mmap_mode="r"))
        photos.append(photo)
    progress(len(paths), len(paths), "reading photographs")
    return photos


class PatchSampler:
    """Draws the patches of a shard: the same for the same shard, whoever asks and in whatever order."""

    def __init__(self, photos: Sequence[Photo], job: ImagesSource) -> None:
        self._photos = photos
        self._job = job
        places = np.array([photo.places(job.patch) for photo in photos])
        self._across = places[:, 1]
        self._ends = np.cumsum(places[:, 0] * places[:, 1])

    def block(self, shard: Shard) -> np.ndarray:
        """[len(shard), D0] float32: patches with mean and contrast removed as the job says."""
        rng = np.random.default_rng(np.random.SeedSequence(self._job.seed, spawn_key=(shard.index,)))
        out = np.empty((len(shard), int(np.prod(self._job.patch_shape))), np.float32)
        wanted = np.arange(len(shard))
        for _ in range(REDRAWS):
            out[wanted] = self._draw(rng, len(wanted))
            wanted = wanted[out[wanted].std(axis=1) < self._job.min_std]
            if not len(wanted):
                return remove_mean(out, dc=self._job.dc, contrast=self._job.contrast)
        raise BadData(
            f"min_std={self._job.min_std}: after {REDRAWS} draws {len(wanted)} of {len(shard)} patches still vary "
            "less, the photographs are nearly blank: lower min_std"
        )

    def _draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """[count, D0] patches from positions uniform over all photographs."""
        drawn = rng.integers(self._ends[-1], size=count)
        which = np.searchsorted(self._ends, drawn, side="right")
        at = self._ends[which] - 1 - drawn
        size = self._job.patch
        out = np.empty((count, *self._job.patch_shape), np.float32)
        for photo in np.unique(which):
            rows = np.flatnonzero(which == photo)
            y, x = np.divmod(at[rows], self._across[photo])
            out[rows] = cut(self._photos[photo].pixels, size, y, x)
        return out.reshape(count, -1)


def cut(pixels: np.ndarray, size: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Patches [n, size, size] (or [n, size, size, 3]) of `pixels` [h, w] (or [h, w, 3]) from rows y, columns x on."""
    found = np.lib.stride_tricks.sliding_window_view(pixels, (size, size), axis=(0, 1))[y, x]
    return np.moveaxis(found, 1, -1) if pixels.ndim == 3 else found


def find_images(sources: Sequence[str]) -> list[Path]:
    """The files that `sources` name, each once, in order. NotFound or BadData for a source that gives none."""
    paths: dict[Path, None] = {}
    for source in sources:
        shipped = source.startswith(SKLEARN)
        found = _sklearn_photos(source.removeprefix(SKLEARN)) if shipped else find_files([source], SUFFIXES, "images")
        paths.update(dict.fromkeys(found))
    return list(paths)


def _sklearn_photos(name: str) -> list[Path]:
    """The photographs that scikit-learn ships: `china.jpg`, `flower.jpg`, or `photos` for both."""
    try:
        from importlib.resources import files

        folder = Path(str(files("sklearn.datasets") / "images"))
    except ModuleNotFoundError as error:
        raise StorageError(f"{SKLEARN}{name} needs scikit-learn: pip install 'sparsefleet[photos]'") from error
    shipped = sorted(folder.glob("*.jpg"))
    chosen = [path for path in shipped if name in ("photos", path.name)]
    if not chosen:
        names = ", ".join(SKLEARN + choice for choice in ("photos", *(path.name for path in shipped)))
        raise NotFound(f"{SKLEARN}{name}: scikit-learn has no such photograph; choose one of {names}")
    return chosen


def read_photo(path: Path, *, color: bool, prefilter: bool) -> Photo:
    """The photograph in `path`, upright, values in [0, 1] (less at the edges and around 0 with `prefilter`).

    BadData when the file is empty, damaged or no image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
            deep = upright.mode.startswith("I") or upright.mode == "F"
            # 16-bit files keep their depth, everything else (palettes, alpha, CMYK, …) becomes 8-bit red, green, blue.
            pixels = np.asarray(upright if deep else upright.convert("RGB"), np.float32)
            scale = {"F": 1.0}.get(upright.mode, 65535.0) if deep else 255.0
    except UnidentifiedImageError as error:
        what = "is empty" if not path.stat().st_size else "is not an image"
        raise BadData(f"{path} {what}") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadData(f"{path} cannot be read as an image: {error}") from error
    pixels = pixels / np.float32(scale)
    if pixels.ndim == 2 and color:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    elif pixels.ndim == 3 and not color:
        pixels = pixels @ LUMINANCE
    if not np.isfinite(pixels).all():
        raise BadData(f"{path} has pixels that are NaN or Inf")
    return Photo(str(path), difference_of_gaussians(pixels, path) if prefilter else pixels)


def difference_of_gaussians(pixels: np.ndarray, path: Path) -> np.ndarray:
    """Centre (σ = 1) minus surround (σ = 3) over 9×9 pixels, without DC, peak 1; 4 pixels are lost at each edge."""
    if min(pixels.shape[:2]) < 9:
        raise BadData(f"{path} has {pixels.shape[1]}×{pixels.shape[0]} pixels: the prefilter needs at least 9×9")
    at = np.arange(-4, 5, dtype=np.float64)
    centre, surround = (np.exp(-(at**2) / (2 * sigma**2)) for sigma in (1.0, 3.0))
    centre, surround = centre / centre.sum(), surround / surround.sum()
    peak = centre[4] ** 2 - surround[4] ** 2
    return ((_blur(pixels, centre) - _blur(pixels, surround)) / peak).astype(np.float32)


def _blur(pixels: np.ndarray, taps: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        length = pixels.shape[axis] - len(taps) + 1
        shifted = (np.take(pixels, range(i, i + length), axis) for i in range(len(taps)))
        pixels = np.add.reduce([tap * part for tap, part in zip(taps, shifted)])
    return pixels
