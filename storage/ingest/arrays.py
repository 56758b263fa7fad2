"""Matrices in files (.npy, .npz, HDF5, Parquet), larger than memory, as the rows of a data set.

Shapes: N rows (all files one after the other) of D0 numbers; rows with more axes are flattened and keep their shape as
`patch_shape`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ..errors import BadData
from ..layout import Shard, first_problem, refuse_nonfinite
from ..reader import Dataset
from .build import Plan, Progress, WhitenedSource, build, claim, shard_layout
from .sources import Rows, find_sources, open_sources

MAX_STRIPE = 1024
"""Rows that stay together until they are in their shard: files are read in stripes, never row by row."""


class ArraysSource(WhitenedSource):
    """An ingest of matrices."""

    kind: Literal["arrays"] = "arrays"
    sources: Annotated[list[str], Field(min_length=1)]
    """Files, or patterns: `x.npy`, `x.npz::key`, `x.h5::dataset`, `x.parquet::column,column`; rows are concatenated."""
    dtype: Literal["float32", "float64"] = "float32"
    center: bool = False
    """Subtract the mean row (whitening does so anyway)."""
    missing: bool = False
    """NaN stands for a missing value and is kept, for models that accept it; otherwise it is refused."""
    shuffle: bool = False
    """Mix the rows: stripes of up to 1024 rows over the whole data set, then the rows of each shard."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the shuffle."""


def ingest_arrays(job: ArraysSource, progress: Progress) -> Dataset:
    """Makes (or continues) the data set of the matrices' rows.

    Raises:
        NotFound: a source is not there.
        BadData: a file is damaged or no matrix of real numbers, widths differ, NaN or Inf (file and row are named).
        StorageError: the place is taken or cannot be written, or a package is missing.
    """
    if job.missing and (job.center or job.whiten != "none"):
        raise BadData("missing=True: rows with missing values can be neither centred nor whitened")
    sources = find_sources(job.sources)
    claim(job.out, None, overwrite=job.overwrite)
    progress(0, len(sources), "opening sources")
    with open_sources(sources, job.out) as matrices:
        progress(len(sources), len(sources), "opening sources")
        gather = Gather(matrices, job)
        attributes: dict[str, Any] = {
            # Which rows a shuffled shard holds depends on where shards begin.
            "recipe": _recipe(job) | {"shard_rows": gather.shard_rows},
            "sources": [source.fingerprint for source in sources],
            "row": f"row of the source matrices, {'shuffled' if job.shuffle else 'in their order'}",
        }
        if len(gather.row_shape) > 1:
            attributes["patch_shape"] = list(gather.row_shape)
        plan = Plan(
            out=job.out,
            overwrite=job.overwrite,
            rows=gather.rows,
            dim=gather.dim,
            dtype=job.dtype,
            shard_rows=gather.shard_rows,
            chunk_rows=gather.chunk_rows,
            attributes=attributes,
            block=gather.block,
            missing=job.missing,
            center=job.center,
            whiten=job.whiten,
            keep=job.keep,
            epsilon=job.epsilon,
            sample_rows=gather.rows,
        )
        return build(plan, progress)


def _recipe(job: ArraysSource) -> dict[str, Any]:
    """What makes the data set what it is; `missing` only where it is set, so that fingerprints stay as they were."""
    recipe = job.model_dump(exclude={"sources", "out", "overwrite"})
    return recipe if job.missing else {k: v for k, v in recipe.items() if k != "missing"}


class Gather:
    """The rows of a shard, from wherever they lie in the sources."""

    def __init__(self, matrices: Sequence[Rows], job: ArraysSource) -> None:
        self.row_shape = matrices[0].row_shape
        for other in matrices[1:]:
            if other.row_shape != self.row_shape:
                raise BadData(
                    f"{other.name} has rows of {list(other.row_shape)}, {matrices[0].name} of {list(self.row_shape)}: "
                    "they cannot be one data set"
                )
        self._matrices = matrices
        self._job = job
        self._begins = np.cumsum([0, *(m.rows for m in matrices)])
        self.rows = int(self._begins[-1])
        self.dim = int(np.prod(self.row_shape, dtype=np.int64))
        self.shard_rows, self.chunk_rows = shard_layout(self.rows, self.dim, job.dtype, job.shard_rows)
        self._stripe = min(MAX_STRIPE, max(1, self.shard_rows // 16)) if job.shuffle else self.rows
        stripes = -(-self.rows // self._stripe)
        self._order = np.random.default_rng(job.seed).permutation(stripes) if job.shuffle else np.arange(stripes)
        lengths = np.minimum(self.rows - self._order * self._stripe, self._stripe)
        self._ends = np.cumsum(lengths)

    def block(self, shard: Shard) -> np.ndarray:
        """[len(shard), D0] in the job's dtype, finite."""
        out = np.empty((len(shard), self.dim), self._job.dtype)
        at = 0
        for matrix, start, stop in self._pieces(shard):
            part = out[at : at + stop - start]
            try:
                rows = matrix.read(start, stop).reshape(stop - start, self.dim)
            except (OSError, ValueError) as error:
                problem = first_problem(error)
                raise BadData(f"{matrix.name}: rows {start} to {stop} cannot be read ({problem})") from error
            with np.errstate(over="ignore", invalid="ignore"):  # what does not fit the dtype is refused below
                part[...] = rows
            refuse_nonfinite(part, f"{matrix.name} as {self._job.dtype}", start, missing=self._job.missing)
            at += stop - start
        if self._job.shuffle:
            sequence = np.random.SeedSequence(self._job.seed, spawn_key=(shard.index,))
            np.random.default_rng(sequence).shuffle(out)
        return out

    def _pieces(self, shard: Shard) -> Iterator[tuple[Rows, int, int]]:
        """Matrix, first and last row (+ 1) of every contiguous part of the shard."""
        at = shard.start
        while at < shard.stop:
            stripe = int(np.searchsorted(self._ends, at, side="right"))
            left = min(int(self._ends[stripe]), shard.stop) - at
            length = min(self._stripe, self.rows - int(self._order[stripe]) * self._stripe)
            row = int(self._order[stripe]) * self._stripe + length - (int(self._ends[stripe]) - at)
            at += left
            while left:
                which = int(np.searchsorted(self._begins, row, side="right")) - 1
                take = min(left, int(self._begins[which + 1]) - row)
                start = row - int(self._begins[which])
                yield self._matrices[which], start, start + take
                row, left = row + take, left - take
