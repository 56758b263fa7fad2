"""Windows of series of measurements (.csv), as the rows of a data set: the channels of a sensor network side by side.

A file has a line per reading: columns of values, optionally one that tells series apart (the sensor's number), one for
the time step by which they are matched, and one that marks events. Shapes: T steps, C channels (columns × series), N
windows of `window` steps, D = C · window numbers, channel after channel.

Windows that begin late can be held out, with their marks, to judge what was learned from those before.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..errors import BadData
from ..layout import first_problem
from ..reader import Dataset
from ..writer import create_dataset
from .build import Progress, claim, shard_layout
from .sources import file_fingerprint, find_files

SUFFIXES = (".csv",)
HELD_OUT, MARKS = "held_out", "held_out_marks"
"""Side arrays: windows that are held out [M, D], and which of them touch a marked reading [M], 0 or 1."""


class SeriesSource(BaseModel):
    """An ingest of windows of measurements."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["series"] = "series"
    out: str
    """Where the data set goes: a path or s3://bucket/prefix."""
    sources: Annotated[list[str], Field(min_length=1)]
    """.csv files with a line of names, folders (searched with all below), glob patterns; one after the other."""
    columns: Annotated[list[str], Field(min_length=1)]
    """Columns of values."""
    key: str | None = None
    """Column that tells series apart (a sensor's number); their values stand side by side."""
    clock: str | None = None
    """Column of the time step, a number: matches series; windows do not cross a gap. By default the order of lines."""
    label: str | None = None
    """Column that is not 0 for readings that are events: windows with one are not learned from."""
    window: Annotated[int, Field(ge=1, le=65536)] = 8
    """Steps in a window."""
    hop: Annotated[int, Field(ge=1)] = 1
    """A window begins every so many steps."""
    learn: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the time that is learned from; windows that begin later are held out, with their labels."""
    dc: bool = True
    """Remove each channel's own mean from each window."""
    scale: bool = True
    """Divide each channel by its standard deviation over the windows to learn from."""
    shard_rows: Annotated[int, Field(ge=1)] | None = None
    """Rows in a shard; by default chosen by size."""
    overwrite: bool = False


@dataclass(frozen=True)
class Readings:
    """All channels on one clock."""

    clock: np.ndarray
    """[T] ascending."""
    values: np.ndarray
    """[T, C] float64."""
    marked: np.ndarray
    """[T] bool."""
    channels: list[str]
    """Names, C."""


def ingest_series(job: SeriesSource, progress: Progress) -> Dataset:
    """Makes the data set of windows; all readings are held in memory.

    Raises:
        NotFound: a source is not there.
        BadData: a file is no table, a column is missing or holds no number, a reading occurs twice, or nothing is left.
        StorageError: the place is taken or cannot be written.
    """
    paths = find_files(job.sources, SUFFIXES, "tables")
    # Seconds of work: what was begun is begun again.
    unfinished = claim(job.out, None, overwrite=job.overwrite)
    progress(0, len(paths), "reading tables")
    readings = read_series(paths, job)
    progress(len(paths), len(paths), "reading tables")
    rows, held_out, marks = windows(readings, job)
    shard_rows, chunk_rows = shard_layout(len(rows), rows.shape[1], "float32", job.shard_rows)
    writer = create_dataset(
        job.out,
        rows=len(rows),
        arrays={"data": ((rows.shape[1],), "float32")},
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        attributes={
            "recipe": job.model_dump(exclude={"sources", "out", "overwrite"}) | {"shard_rows": shard_rows},
            "sources": [file_fingerprint(path) for path in paths],
            "channels": readings.channels,
            "row": f"{job.window} steps of {len(readings.channels)} channels, channel after channel",
        },
        side={HELD_OUT: held_out, MARKS: marks} if len(held_out) else {},
        overwrite=job.overwrite or unfinished,
    )
    shards = writer.shards()
    for done, shard in enumerate(shards, start=1):
        writer.write(shard, data=rows[shard.slice])
        progress(done, len(shards), "writing shards")
    return writer.finish()


def windows(readings: Readings, job: SeriesSource) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows to learn from [N, D], those held out [M, D] (float32), and which of these are marked [M] uint8.

    Raises:
        BadData: there are fewer steps than a window needs, or all windows to learn from are marked.
    """
    steps = len(readings.clock)
    if steps < job.window:
        raise BadData(f"the series have {steps} steps in common, a window needs {job.window}: take a shorter one")
    at = np.arange(0, steps - job.window + 1, job.hop)
    span = readings.clock[at + job.window - 1] - readings.clock[at]
    tick = float(np.median(np.diff(readings.clock))) if steps > 1 else 1.0
    at = at[np.abs(span - (job.window - 1) * tick) <= 0.01 * tick]
    view = np.lib.stride_tricks.sliding_window_view
    marked = view(readings.marked, job.window)[at].max(1)
    early = at < job.learn * steps
    learned = early & ~marked
    if not learned.any():
        raise BadData(
            f"no window of {job.window} steps is left to learn from ({len(at)} without a gap, {int(early.sum())} in "
            f"the first {job.learn:.0%} of the time, {int((early & marked).sum())} of them marked)"
        )
    cut = view(readings.values, job.window, axis=0)[at]
    if job.dc:
        cut = cut - cut.mean(axis=2, keepdims=True)
    if job.scale:
        deviation = cut[learned].std(axis=(0, 2), keepdims=True)
        cut = cut / np.where(deviation > 0, deviation, 1)
    flat = cut.reshape(len(at), -1).astype(np.float32)
    return flat[learned], flat[~early], marked[~early].astype(np.uint8)


def read_series(paths: Sequence[Path], job: SeriesSource) -> Readings:
    """The readings of all files, at the steps that all series have. BadData as `ingest_series`."""
    wanted = [n for n in (*job.columns, job.key, job.clock, job.label) if n is not None]
    tables = [_read_table(path, wanted) for path in paths]
    table = {name: [cell for t in tables for cell in t[name]] for name in wanted}
    lines = len(table[job.columns[0]])
    series = np.asarray(table[job.key]) if job.key else np.zeros(lines, dtype="<U1")
    values = np.stack([_numbers(table[name], name) for name in job.columns], axis=1)
    marked = np.zeros(lines, dtype=bool)
    if job.label:
        marked[_numbers(table[job.label], job.label) != 0] = True
    names = list(dict.fromkeys(series.tolist()))
    parts = [np.flatnonzero(series == name) for name in names]
    if job.clock:
        clock = _numbers(table[job.clock], job.clock)
    else:
        clock = np.empty(lines)
        for part in parts:
            clock[part] = np.arange(len(part))
    common, rows = _matched(clock, parts, names, job.key)
    channels = [f"{name} {key}".strip() for name in job.columns for key in names]
    by_series = np.stack([values[row] for row in rows], axis=2)
    return Readings(common, by_series.reshape(len(common), -1), np.stack([marked[r] for r in rows]).max(0), channels)


def _matched(
    clock: np.ndarray, parts: Sequence[np.ndarray], names: Sequence[str], key: str | None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The steps that all series have, ascending, and each series' lines at them."""
    common: np.ndarray | None = None
    for part, name in zip(parts, names):
        steps, counts = np.unique(clock[part], return_counts=True)
        if (counts > 1).any():
            where = f" of {key} {name}" if key else ""
            raise BadData(
                f"step {steps[counts > 1][0]:g}{where} occurs more than once: which column tells series apart?"
            )
        common = steps if common is None else np.intersect1d(common, steps)
    assert common is not None
    rows: list[np.ndarray] = []
    for part in parts:
        ordered = part[np.argsort(clock[part], kind="stable")]
        rows.append(ordered[np.searchsorted(clock[ordered], common)])
    return common, rows


def _read_table(path: Path, wanted: Sequence[str]) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or []
            missing = [name for name in wanted if name not in names]
            if missing:
                raise BadData(f"{path} has no column {missing[0]!r}; it has {', '.join(names) or 'none'}")
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{path} cannot be read as a table: {first_problem(error)}") from error
    if not lines:
        raise BadData(f"{path} has no readings")
    return {name: [line[name] or "" for line in lines] for name in wanted}


def _numbers(cells: Sequence[str], name: str) -> np.ndarray:
    try:
        found = np.asarray(cells, dtype=np.float64)
    except ValueError:
        found = np.array([_number(cell) for cell in cells])
    bad = np.flatnonzero(~np.isfinite(found))
    if bad.size:
        raise BadData(f"column {name!r} holds {cells[int(bad[0])]!r} in reading {int(bad[0]) + 1}: a number is needed")
    return found


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
