"""Windows of sounds (.wav), as the rows of a data set.

A window of `window` samples begins every `hop` samples of every file; stereo is averaged, the mean of a window removed,
near-silent windows are left out. Shapes: N windows of D0 = window samples; samples lie in [-1, 1].
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import gcd
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ..errors import BadData, StorageError
from ..layout import Shard, first_problem
from ..reader import Dataset
from .build import Plan, Progress, WhitenedSource, build, claim, shard_layout
from .sources import file_fingerprint, find_files
from .whitening import remove_mean

SUFFIXES = (".wav",)
SLAB = 1 << 16


class SoundsSource(WhitenedSource):
    """An ingest of windows of sounds."""

    kind: Literal["sounds"] = "sounds"
    sources: Annotated[list[str], Field(min_length=1)]
    """.wav files, folders (searched with all below), glob patterns."""
    window: Annotated[int, Field(ge=2, le=65536)] = 160
    """Samples in a window (20 ms at 8 kHz)."""
    hop: Annotated[int, Field(ge=1)] = 80
    """A window begins every so many samples."""
    rate: Annotated[int, Field(ge=100, le=1_000_000)] | None = None
    """Samples a second that all sounds are brought to; by default their own, which must be the same."""
    dc: bool = True
    """Remove each window's own mean."""
    contrast: bool = False
    """Divide each window by its own standard deviation (with a small floor)."""
    min_std: Annotated[float, Field(ge=0, lt=1)] = 0.002
    """Windows with a smaller standard deviation are left out (0.002: silence goes, soft speech stays)."""
    shuffle: bool = True
    """Mix the windows of all sounds."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the shuffle."""


def ingest_sounds(job: SoundsSource, progress: Progress) -> Dataset:
    """Makes (or continues) the data set of windows.

    Raises:
        NotFound: a source is not there.
        BadData: a file is no .wav, rates differ and none is asked for, or no window is loud enough.
        StorageError: the place is taken or cannot be written, or scipy is missing.
    """
    paths = find_files(job.sources, SUFFIXES, "sounds")
    claim(job.out, None, overwrite=job.overwrite)
    windows = Windows(read_sounds(paths, job.rate, progress), job)
    shard_rows, chunk_rows = shard_layout(windows.rows, job.window, "float32", job.shard_rows)
    attributes: dict[str, Any] = {
        "recipe": job.model_dump(exclude={"sources", "out", "overwrite"}) | {"shard_rows": shard_rows},
        "sources": [file_fingerprint(path) for path in paths],
        "rate": windows.rate,
        "row": f"{job.window} samples of a sound at {windows.rate} Hz, in [-1, 1] before whitening",
    }
    plan = Plan(
        out=job.out,
        overwrite=job.overwrite,
        rows=windows.rows,
        dim=job.window,
        dtype="float32",
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        attributes=attributes,
        block=windows.block,
        center=False,
        whiten=job.whiten,
        keep=job.keep,
        epsilon=job.epsilon,
        sample_rows=windows.rows,
    )
    return build(plan, progress)


class Windows:
    """The windows of all sounds that are loud enough, in their order or mixed."""

    def __init__(self, sounds: Sequence[tuple[Path, int, np.ndarray]], job: SoundsSource) -> None:
        rates = {rate for _, rate, _ in sounds}
        if len(rates) > 1:
            raise BadData(
                f"the sounds have {', '.join(f'{rate} Hz' for rate in sorted(rates))}: bring them to one rate with "
                f"--rate {min(rates)}"
            )
        self._job = job
        self.rate = rates.pop()
        # One signal, so that a window is one number: where it begins. Windows never cross from one sound to the next.
        self._signal = np.concatenate([signal for _, _, signal in sounds])
        ends = np.cumsum([len(signal) for _, _, signal in sounds])
        begins = [
            np.arange(end - len(signal), end - job.window + 1, job.hop) for end, (_, _, signal) in zip(ends, sounds)
        ]
        self._at = self._loud(np.concatenate(begins))
        if not len(self._at):
            longest = max(len(signal) for _, _, signal in sounds)
            raise BadData(
                f"none of {sum(map(len, begins))} windows of {job.window} samples varies by min_std={job.min_std} or "
                f"more (the longest sound has {longest} samples): take a shorter window or lower min_std"
            )
        if job.shuffle:
            np.random.default_rng(job.seed).shuffle(self._at)
        self.rows = len(self._at)

    def block(self, shard: Shard) -> np.ndarray:
        """[len(shard), window] float32."""
        rows = self._cut(self._at[shard.slice])
        return remove_mean(rows, dc=self._job.dc, contrast=self._job.contrast)

    def _cut(self, at: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(self._signal, self._job.window)[at]

    def _loud(self, at: np.ndarray) -> np.ndarray:
        slabs = (at[i : i + SLAB] for i in range(0, len(at), SLAB))
        kept = [slab[self._cut(slab).std(axis=1) >= self._job.min_std] for slab in slabs]
        return np.concatenate(kept) if kept else at


def read_sounds(paths: Sequence[Path], rate: int | None, progress: Progress) -> list[tuple[Path, int, np.ndarray]]:
    """Path, samples a second and signal [T] float32 in [-1, 1] of every sound, resampled where `rate` says so.

    BadData for a file that is no .wav, is damaged or holds NaN.
    """
    out: list[tuple[Path, int, np.ndarray]] = []
    for number, path in enumerate(paths):
        progress(number, len(paths), "reading sounds")
        own, signal = _read_wav(path)
        out.append((path, rate or own, signal if rate in (None, own) else _resample(signal, own, rate)))
    progress(len(paths), len(paths), "reading sounds")
    return out


def _read_wav(path: Path) -> tuple[int, np.ndarray]:
    try:
        from scipy.io import wavfile
    except ImportError as err:
        raise StorageError("sounds need scipy: pip install 'sparsefleet[science]'") from err
    try:
        with warnings.catch_warnings():
            # Chunks that hold no sound (titles, pictures) are announced; they do not matter here.
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            rate, raw = wavfile.read(path)
    except MemoryError:
        raise
    except Exception as error:  # scipy says in many ways that a file is damaged
        what = "is empty" if not path.stat().st_size else f"cannot be read as .wav: {first_problem(error)}"
        raise BadData(f"{path} {what}") from error
    signal = _scaled(raw)
    signal = signal.mean(axis=1) if signal.ndim == 2 else signal
    if not np.isfinite(signal).all():
        raise BadData(f"{path} has samples that are NaN or Inf")
    return int(rate), signal


def _scaled(raw: np.ndarray) -> np.ndarray:
    """float32 in [-1, 1] from what a .wav holds: unsigned bytes, signed integers, or floats as they are."""
    if raw.dtype == np.uint8:
        return (raw.astype(np.float32) - 128) / 128
    if raw.dtype.kind == "i":
        return raw.astype(np.float32) / np.float32(-float(np.iinfo(raw.dtype).min))
    return raw.astype(np.float32)


def _resample(signal: np.ndarray, own: int, rate: int | None) -> np.ndarray:
    from scipy.signal import resample_poly

    assert rate is not None
    common = gcd(own, rate)
    return resample_poly(signal, rate // common, own // common).astype(np.float32)
