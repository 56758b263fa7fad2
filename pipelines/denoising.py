"""Mending one photograph: noise taken away, missing pixels filled. Plain functions; flows.py wraps them for Prefect.

denoise = check, cut (all overlapping patches), fit (the workers encode them), merge (overlaps are averaged)
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from ..models.factorization.denoising import psnr
from ..storage import ArtifactStore, NotFound, open_dataset
from ..storage.artifacts.export import write_files
from ..storage.ingest.images import find_images, read_photo
from ..storage.patches import Preparation, cut_photo, merge_photo
from ..workers.errors import JobError
from ..workers.job import Addresses, EncodeJob, Job, LearnJob
from . import report
from .learning import Fit, fit
from .paths import absolute, make_importable
from .reporter import Reporter, silent

GREY_VALUES = 255.0


class DenoiseJob(Job, Addresses):
    """Take noise from a photograph, or fill its missing pixels, with a published dictionary of patches."""

    data: str = Field(min_length=1, description="the photograph: a file, or sklearn:china.jpg")
    dictionary: str = Field(min_length=1, description="the dictionary: NAME, NAME@VERSION or NAME@ALIAS")
    out: str = Field(min_length=1, description="PNG file to write")
    sigma: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="standard deviation of the photograph's noise in grey values of 255; by default what was learned",
    )
    mask: str | None = Field(
        None, description="picture of the same size whose dark half (grey value below 128) marks the missing pixels"
    )
    keep_known: bool = Field(False, description="leave pixels that are not missing as they are")
    truth: str | None = Field(None, description="the photograph as it should be, to state the PSNR")
    stride: int = Field(1, ge=1, le=64, description="distance between neighbouring patches in pixels")
    adaptive: int = Field(
        0, ge=0, le=64, description="raise h_prime and gamma by up to this much where patches need more atoms"
    )
    batch_rows: int = Field(8192, ge=1, description="patches handled at once")
    dtype: Literal["float32", "float64"] | None = Field(None, description="precision; by default the dictionary's")
    overwrite: bool = Field(False, description="replace an existing file at the output")


@dataclass(frozen=True)
class DenoiseResult:
    """A picture that was written, and how good it is."""

    out: str
    dictionary: str
    patches: int
    metrics: dict[str, float]
    seconds: float
    figures: dict[str, bytes]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the pictures left out."""
        return {
            "out": self.out,
            "dictionary": self.dictionary,
            "patches": self.patches,
            "metrics": self.metrics,
            "seconds": self.seconds,
        }


def denoise(job: DenoiseJob, reporter: Reporter = silent) -> DenoiseResult:
    """Mend one photograph and write it.

    Args:
        job: which photograph, with which dictionary, where to.
        reporter: receives the run's messages.

    Raises:
        JobError, ModelError, StorageError: the job cannot be done as it is; nothing was started.
        EngineError: the workers failed.
    """
    job = check(job)
    with workplace(job) as folder:
        patches = cut(job, folder)
        return merge(job, folder, fit(patches, reporter, "encode"))


def check(job: DenoiseJob) -> DenoiseJob:
    """The job with absolute addresses and the dictionary's version pinned, if it can be done.

    Raises:
        JobError, StorageError: it cannot; the message says why.
    """
    job = absolute(job)
    make_importable(job.module_path)
    out = Path(job.out)
    if "://" in job.out or out.suffix.lower() != ".png":
        raise JobError(f"out={job.out!r}: give a file on this machine that ends in .png")
    if out.is_dir():
        raise JobError(f"out={job.out!r} is a folder: give a file that ends in .png")
    if out.exists() and not job.overwrite:
        raise JobError(f"out={job.out!r} exists: choose another file or pass --overwrite")
    if not out.parent.is_dir():
        raise JobError(f"out={job.out!r}: there is no folder {str(out.parent)!r}")
    if job.keep_known and job.mask is None:
        raise JobError("keep_known=True leaves everything as it is unless --mask says what is missing")
    version = ArtifactStore(job.store, create=False).resolve(job.dictionary)
    job = job.model_copy(update={"dictionary": version.ref})
    prepared = preparation(job)
    _check_probabilistic(job)
    if job.sigma is not None and (prepared.whiten is not None or prepared.contrast):
        raise JobError(
            f"sigma={job.sigma}: the patches of {version.ref} were whitened or scaled, so that grey values say "
            "nothing about their noise; leave sigma out"
        )
    if job.stride > prepared.size:
        raise JobError(
            f"stride={job.stride} would leave gaps between patches of {prepared.size}×{prepared.size} pixels: "
            f"give at most {prepared.size}"
        )
    photo, _ = read(job, prepared)
    if photo.shape[0] < prepared.size or photo.shape[1] < prepared.size:
        raise JobError(f"data={job.data!r} is smaller than a patch of {prepared.size}×{prepared.size} pixels")
    return job


def _check_probabilistic(job: DenoiseJob) -> None:
    """JobError where noise is given, or pixels are missing, and the dictionary's model knows of neither."""
    if job.sigma is None and job.mask is None:
        return
    card = ArtifactStore(job.store, create=False).card(job.dictionary)
    made_by = LearnJob.parse(card["job"])
    if not isinstance(getattr(made_by.build_model(), "missing", None), bool):
        which = "sigma" if job.sigma is not None else "mask"
        raise JobError(
            f"{which}={getattr(job, which)!r}: {job.dictionary} is of model {made_by.model!r}, which has no noise to "
            f"be told and needs all pixels; take a dictionary of a probabilistic model, such as bsc or gsc, or leave "
            f"{which} out"
        )


def preparation(job: DenoiseJob) -> Preparation:
    """How patches become rows for the dictionary, as the data set says that it was learned on.

    Raises:
        JobError: that data set is gone, or another one is in its place.
        StorageError: its rows are no patches.
    """
    learned_on = ArtifactStore(job.store, create=False).card(job.dictionary)["data"] or {}
    uri = learned_on.get("uri")
    if not uri:
        raise JobError(f"dictionary {job.dictionary} has no data set on its card, which says how patches are prepared")
    try:
        data = open_dataset(uri)
    except NotFound as err:
        raise JobError(
            f"dictionary {job.dictionary} was learned on {uri!r}, which is gone; it says how patches are prepared"
        ) from err
    if data.fingerprint != learned_on.get("fingerprint"):
        raise JobError(
            f"dictionary {job.dictionary} was learned on other data than what is at {uri!r} now; how its patches were "
            "prepared is not known any more: make that data set again, or learn from this one"
        )
    return Preparation.of(data)


def read(job: DenoiseJob, prepared: Preparation) -> tuple[np.ndarray, np.ndarray | None]:
    """The photograph [h, w] or [h, w, 3] in [0, 1], NaN where the mask is dark, and the truth.

    Raises:
        JobError: the pictures differ in size.
        StorageError: one of them cannot be read.
    """
    photo = _picture(job.data, color=prepared.color)
    others = {name: _picture(uri, color=prepared.color) for name in ("mask", "truth") if (uri := getattr(job, name))}
    for name, other in others.items():
        if other.shape != photo.shape:
            sizes = [f"{p.shape[1]}×{p.shape[0]}" for p in (other, photo)]
            raise JobError(f"{name}={getattr(job, name)!r} has {sizes[0]} pixels, the photograph {sizes[1]}")
    if "mask" in others:
        dark = others["mask"] if not prepared.color else others["mask"].mean(axis=2)
        photo = photo.copy()
        photo[dark < 128 / GREY_VALUES] = np.nan
        if np.isnan(photo).all():
            raise JobError(f"mask={job.mask!r} leaves no pixel: dark means missing")
    return photo, others.get("truth")


def _picture(uri: str, *, color: bool) -> np.ndarray:
    found = find_images([uri])
    if len(found) != 1:
        raise JobError(f"{uri!r} names {len(found)} photographs; give one")
    return read_photo(found[0], color=color, prefilter=False).pixels


@contextmanager
def workplace(job: DenoiseJob) -> Generator[str]:
    """A folder beside the output for patches and codes, which all workers must see; removed at the end."""
    with tempfile.TemporaryDirectory(prefix=f".{Path(job.out).stem}-", dir=Path(job.out).parent) as folder:
        yield folder


def cut(job: DenoiseJob, folder: str) -> EncodeJob:
    """All patches as a data set in `folder`, and the job that encodes them."""
    prepared = preparation(job)
    photo, _ = read(job, prepared)
    patches = cut_photo(photo, f"{folder}/patches.zarr", prepared, stride=job.stride)
    shared = {name: getattr(job, name) for name in (*Job.model_fields, "store")}
    return EncodeJob(
        **shared,
        data=patches.uri,
        dictionary=job.dictionary,
        out=f"{folder}/codes.zarr",
        outputs=["reconstruction"],
        # Only the reconstruction is needed.
        keep=1,
        missing=patches.missing,
        sigma=None if job.sigma is None else job.sigma / GREY_VALUES,
        adaptive=job.adaptive,
        batch_rows=job.batch_rows,
        dtype=job.dtype,
        overwrite=True,
    )


def merge(job: DenoiseJob, folder: str, done: Fit) -> DenoiseResult:
    """Average the overlaps, write the picture, and compare it with the truth."""
    prepared = preparation(job)
    photo, truth = read(job, prepared)
    patches = open_dataset(f"{folder}/patches.zarr")
    mended, empty = merge_photo(patches, open_dataset(f"{folder}/codes.zarr"), prepared, photo.shape)
    if job.keep_known:
        mended = np.where(np.isnan(photo), mended, photo)
    mended = mended.clip(0, 1)
    metrics = {"missing_share": float(np.isnan(photo).mean())} if job.mask else {}
    if empty:
        metrics["pixels_beyond_patches"] = float(empty)
    if truth is not None:
        # Missing pixels count with the value that is known without any model.
        before = np.where(np.isnan(photo), np.nanmean(photo), photo)
        for name, picture in {"psnr_before": before, "psnr": mended}.items():
            metrics[name] = psnr(torch.from_numpy(picture), torch.from_numpy(truth), 1.0)
    write_files({Path(job.out): report.photo_png(mended)}, overwrite=job.overwrite)
    pictures = [np.nan_to_num(photo), mended] + ([] if truth is None else [truth])
    figures = {"before_after.png": report.photos_side_by_side(pictures)}
    return DenoiseResult(job.out, job.dictionary, patches.rows, metrics, done.seconds, figures)
