"""The part that all ingests share: learn the whitening, lay out the data set, fill its shards with dask.

One dask task a shard, on threads; a shard's rows depend on nothing but the plan and the shard's number, so that an
interrupted ingest continues where it stopped and ends in the same data set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..errors import BadData, StoreConflict
from ..layout import Shard, choose_layout, split_rows
from ..locations import locate
from ..reader import Dataset
from ..writer import check_writable, create_dataset, find_unfinished, open_writer
from .whitening import Kind, Moments, Whitening, check_dim, learn_whitening

T = TypeVar("T")

Progress = Callable[[int, int, str], None]
"""progress(done, total, what), called in the thread that called `ingest`."""


class WhitenedSource(BaseModel):
    """What the ingests have in common that read sources and may whiten their rows."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    out: str
    """Where the data set goes: a path or s3://bucket/prefix."""
    whiten: Kind = "none"
    """Remove correlations between the numbers of a row."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Fraction of the variance whose directions are whitened; the rest is dropped."""
    epsilon: Annotated[float, Field(ge=0)] = 0.01
    """Added to the variances before their roots are inverted, in units of their mean: noise is not blown up."""
    shard_rows: Annotated[int, Field(ge=1)] | None = None
    """Rows in a shard; by default chosen by size."""
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A data set that can be made: what, where, and the rows of each shard."""

    out: str
    overwrite: bool
    rows: int
    """N."""
    dim: int
    """D0, numbers in a row of the source."""
    dtype: str
    shard_rows: int
    chunk_rows: int
    attributes: dict[str, Any]
    block: Callable[[Shard], np.ndarray]
    """[len(shard), D0] of `dtype`: the rows of a shard before whitening, the same whenever asked. From any thread."""
    missing: bool = False
    """Whether NaN stands for a missing value."""
    center: bool
    whiten: Kind
    keep: float
    epsilon: float
    sample_rows: int
    """The covariance is learned from the first shards until they hold this many rows."""


def shard_layout(rows: int, dim: int, dtype: str, shard_rows: int | None) -> tuple[int, int]:
    """Rows of a shard and a chunk: as chosen by size, or about as the user says."""
    row_bytes = dim * np.dtype(dtype).itemsize
    if shard_rows is None:
        return choose_layout(rows, row_bytes)
    chunk_rows = min(shard_rows, max(1, 2_000_000 // row_bytes))
    return shard_rows - shard_rows % chunk_rows, chunk_rows


def claim(out: str, attributes: dict[str, Any] | None, *, overwrite: bool) -> bool:
    """Whether an interrupted ingest of the same recipe is to be continued at `out`; False where a new one may begin.

    StoreConflict or StorageError, before any work, where the place is taken, holds unfinished work of another recipe,
    or cannot be written. Without `attributes` (not known yet) any unfinished work passes.
    """
    place = locate(out)
    found = find_unfinished(place, overwrite=overwrite)
    if found is None:
        check_writable(place)
        return False
    if attributes is not None and found[1].attributes != attributes:
        raise StoreConflict(
            f"{place.uri} holds an unfinished data set of another recipe: choose another place or pass --overwrite"
        )
    return True


def build(plan: Plan, progress: Progress) -> Dataset:
    """The data set of `plan`: continued where an interrupted ingest stopped, otherwise made from the start.

    Raises:
        BadData: a source has NaN, Inf or nothing to whiten. What was written of the data set is removed.
        StorageError: the place is taken or cannot be written.
    """
    check_dim(plan.dim, plan.whiten)
    if claim(plan.out, plan.attributes, overwrite=plan.overwrite):
        writer = open_writer(plan.out)
        whitening = _stored(writer.side)
    else:
        whitening = _learn(plan, progress)
        writer = create_dataset(
            plan.out,
            rows=plan.rows,
            arrays={"data": ((plan.dim if whitening is None else whitening.dim,), plan.dtype)},
            shard_rows=plan.shard_rows,
            chunk_rows=plan.chunk_rows,
            attributes=plan.attributes,
            side={} if whitening is None else whitening.side,
            missing=plan.missing,
            overwrite=plan.overwrite,
        )

    def fill(shard: Shard) -> None:
        block = plan.block(shard)
        writer.write(shard, data=block if whitening is None else whitening(block))

    total, missing = len(writer.shards()), writer.missing()
    try:
        for_each(fill, missing, lambda done: progress(total - len(missing) + done, total, "writing shards"))
    except BadData:
        writer.discard()
        raise
    return writer.finish()


def _stored(side: Callable[[str], np.ndarray | None]) -> Whitening | None:
    """The whitening that an interrupted ingest had learned."""
    mean = side("mean")
    return None if mean is None else Whitening(mean, side("whiten"), side("unwhiten"))


def _learn(plan: Plan, progress: Progress) -> Whitening | None:
    if plan.whiten == "none" and not plan.center:
        return None
    shards = split_rows(plan.rows, plan.shard_rows)
    shards = [shard for shard in shards if shard.start < max(plan.sample_rows, 20 * plan.dim)]
    what = "learning the mean" if plan.whiten == "none" else "learning the covariance"
    partial: dict[int, Moments] = {}

    def gather(shard: Shard) -> None:
        partial[shard.index] = Moments.of(plan.block(shard), scatter=plan.whiten != "none")

    moments: Moments | None = None
    # Few at a time, added in order: D0² numbers a shard would not fit otherwise, and a repeat gives the same bits.
    step = max(1, 2 * workers())
    for at in range(0, len(shards), step):
        group = shards[at : at + step]
        for_each(gather, group, lambda done, at=at: progress(at + done, len(shards), what))
        for shard in group:
            part = partial.pop(shard.index)
            moments = part if moments is None else moments + part
    assert moments is not None
    if plan.whiten == "none":
        return Whitening(moments.mean)
    return learn_whitening(moments, plan.whiten, keep=plan.keep, epsilon=plan.epsilon)


def workers() -> int:
    """Threads that make shards: one a core, at most four, so that memory stays at a few shards."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


def for_each(task: Callable[[T], None], items: Sequence[T], done: Callable[[int], None]) -> None:
    """Calls `task` on every item, on dask's threads; `done(how many)` is called here after each.

    The first exception ends it, once the tasks that run have ended; so does Ctrl-C.
    """
    import dask
    from dask.callbacks import Callback

    threads, finished = workers(), 0

    def count(*_: object) -> None:
        nonlocal finished
        finished += 1
        done(min(finished, len(items)))

    calls = [dask.delayed(task, pure=False)(item) for item in items]  # pyright: ignore[reportPrivateImportUsage]
    done(0)
    # A pool of our own: leaving it waits for the tasks that still run, so that nothing is written after an error.
    with Callback(posttask=count), one_thread_each(), ThreadPoolExecutor(threads) as pool:
        dask.compute(*calls, scheduler="threads", pool=pool, num_workers=threads)  # pyright: ignore


def one_thread_each() -> AbstractContextManager[object]:
    """Keeps matrix products inside to the thread that asks for them, where threadpoolctl is installed.

    Threads of the linear algebra library under threads of dask wait for each other (many times slower on busy
    machines), and their number would change the last bits of what a continued ingest writes.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    return threadpool_limits(1, "blas")
