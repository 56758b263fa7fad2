"""How a data set is laid out: shards, chunks, and the header that describes them. Pure values, nothing is read here.

Shapes: N rows, D numbers a row. A shard is the unit of writing and of work; a chunk is the smallest part read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from .errors import BadData, StorageError

FORMAT = 1
"""Version of the layout; data sets of a newer one are refused."""
HEADER = "sparsefleet"
"""The one attribute of the group under which the header stands."""
DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
DONE = "done"
"""Array beside the data, one byte a shard: 1 when the shard's owner has written all of it."""
MAX_SHARDS = 2**24
"""More would take minutes to list: of 64 MB each, these are a petabyte."""


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """A block of rows with a name: everything done per shard (retry, random stream, log line) is keyed by it.

    >>> Shard(2, 200, 250).slice, len(Shard(2, 200, 250))
    (slice(200, 250, None), 50)
    """

    index: int
    start: int
    stop: int

    @property
    def slice(self) -> slice:
        """The shard's rows."""
        return slice(self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start


def split_rows(rows: int, shard_rows: int) -> list[Shard]:
    """All shards of a data set; the last may be shorter.

    >>> split_rows(250, 100)[-1]
    Shard(index=2, start=200, stop=250)
    """
    return [Shard(i, at, min(at + shard_rows, rows)) for i, at in enumerate(range(0, rows, shard_rows))]


def choose_layout(rows: int, row_bytes: int, *, shard_mb: float = 64) -> tuple[int, int]:
    """Rows of a shard and of a chunk, for `rows` rows of `row_bytes` bytes each.

    Shards of `shard_mb` MB hold chunks of 1-4 MB. A small data set gets smaller shards, 16 or more where that leaves
    at least 32 rows each, so that several workers find work.

    >>> choose_layout(10_000_000, 1024), choose_layout(50_000, 1024), choose_layout(100, 1024)
    ((61440, 1920), (3072, 3072), (32, 32))
    """
    by_size = int(shard_mb * 1e6) // max(row_bytes, 1)
    wanted = max(1, min(by_size, max(32, rows // 16), rows))
    chunks = min(64, wanted, max(1, wanted * row_bytes // 2_000_000))
    chunk_rows = wanted // chunks
    if chunk_rows > 64:
        chunk_rows -= chunk_rows % 64
    return chunk_rows * chunks, chunk_rows


class ArrayLayout(BaseModel):
    """Shape of one row and dtype of an array that has one entry a row."""

    model_config = ConfigDict(frozen=True)

    shape: tuple[Annotated[int, Field(ge=1)], ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def fill_value(self) -> float | int:
        """What stands where nothing was written: NaN, -1, or 0 where there is no sign."""
        return {"f": float("nan"), "i": -1, "u": 0}[np.dtype(self.dtype).kind]


class Header(BaseModel):
    """Everything about a data set but its numbers, as kept in the attributes of its group."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = FORMAT
    kind: Literal["dense", "codes"]
    rows: Annotated[int, Field(ge=1)]
    shard_rows: Annotated[int, Field(ge=1)]
    chunk_rows: Annotated[int, Field(ge=1)]
    arrays: dict[str, ArrayLayout]
    side: dict[str, str]
    """SHA-256 of each small array beside the data."""
    attributes: dict[str, JsonValue]
    """How the data set was made: recipe, fingerprints of the sources, meaning of a row, …"""
    fingerprint: str
    missing: bool = False
    """Whether NaN stands for a missing value in `data`; every row has at least one value."""
    finished: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.shard_rows % self.chunk_rows:
            raise ValueError(f"shard_rows={self.shard_rows} is no multiple of chunk_rows={self.chunk_rows}")
        if self.rows > self.shard_rows * MAX_SHARDS:
            raise ValueError(f"rows={self.rows} in shards of {self.shard_rows} are more than {MAX_SHARDS:,} shards")
        main = {"dense": {"data"}, "codes": {"indices", "values"}}[self.kind]
        if not main <= self.arrays.keys():
            raise ValueError(f"a {self.kind} data set needs {' and '.join(sorted(main))}, not {', '.join(self.arrays)}")
        for name in (*self.arrays, *self.side):
            if not NAME.fullmatch(name) or name == DONE or (name in self.arrays and name in self.side):
                raise ValueError(f"{name!r} cannot name an array: letters, digits and _, each name once, not {DONE!r}")
        for name, array in self.arrays.items():
            if array.dtype not in DTYPES:
                raise ValueError(f"{name}: dtype {array.dtype!r} is none of {', '.join(DTYPES)}")
        if self.missing and "data" not in self.arrays:
            raise ValueError("only a data set of rows can have missing values")
        if self.fingerprint != fingerprint(self.rows, self.arrays, self.attributes):
            raise ValueError("the fingerprint does not belong to the recipe, shape and dtype beside it")
        return self

    @property
    def shards(self) -> list[Shard]:
        """All shards in order."""
        return split_rows(self.rows, self.shard_rows)

    @property
    def main(self) -> ArrayLayout:
        """The array that speaks for the data set: `data`, or the codes' `values`."""
        return self.arrays["data" if self.kind == "dense" else "values"]

    def continues(self, other: Header) -> bool:
        """Whether the unfinished `other` is the same work in the same layout, so that its shards can be kept."""
        ignored = {"side", "finished"}
        return not other.finished and self.model_dump(exclude=ignored) == other.model_dump(exclude=ignored)


def make_header(
    rows: int,
    arrays: Mapping[str, tuple[tuple[int, ...], str]],
    shard_rows: int,
    chunk_rows: int,
    attributes: Mapping[str, Any],
    side: Mapping[str, np.ndarray],
    *,
    missing: bool = False,
) -> Header:
    """A checked header; BadData names what does not fit. `arrays` maps a name to (shape of one row, dtype)."""
    layouts = {k: {"shape": shape, "dtype": dtype} for k, (shape, dtype) in arrays.items()}
    try:
        plain = json.loads(canonical_json(dict(attributes)))
        return Header(
            kind="codes" if "indices" in arrays else "dense",
            rows=rows,
            shard_rows=shard_rows,
            chunk_rows=chunk_rows,
            arrays={k: ArrayLayout.model_validate(v) for k, v in layouts.items()},
            side={k: array_sha256(v) for k, v in side.items()},
            attributes=plain,
            missing=missing,
            fingerprint=fingerprint(rows, {k: ArrayLayout.model_validate(v) for k, v in layouts.items()}, plain),
        )
    except (TypeError, ValueError) as error:
        raise BadData(f"this cannot be laid out as a data set: {first_problem(error)}") from error


def fingerprint(rows: int, arrays: Mapping[str, ArrayLayout], attributes: Mapping[str, Any]) -> str:
    """SHA-256 of recipe, shape and dtype: the same content has the same, wherever it lies and however it is sharded."""
    shapes = {k: [rows, *v.shape, v.dtype] for k, v in arrays.items()}
    return hashlib.sha256(canonical_json({"arrays": shapes, "attributes": attributes}).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """One text per value, so that equal values have equal hashes; ValueError or TypeError for what JSON cannot hold."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def array_sha256(array: np.ndarray) -> str:
    """SHA-256 of an array's dtype, shape and bytes."""
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def parse_header(raw: object, uri: str) -> Header:
    """The header that stands in a group's attributes; StorageError when it is damaged or from a newer version."""
    version = raw.get("format") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise StorageError(
            f"{uri} was written by a newer sparsefleet (format {version}, this one reads {FORMAT}): update sparsefleet"
        )
    try:
        return Header.model_validate(raw)
    except ValueError as error:
        raise StorageError(f"{uri}: the data set's header is damaged ({first_problem(error)})") from error


def first_problem(error: Exception) -> str:
    """One line about an exception; of pydantic's, the first field that is wrong."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")
    return " ".join(str(error).split())[:300] or type(error).__name__


def refuse_nonfinite(block: np.ndarray, what: str, first_row: int, *, missing: bool = False) -> None:
    """BadData that names the first rows of `block` with NaN or Inf; `first_row` is the row number of block[0].

    With `missing` NaN stands for a missing value: rows with Inf or without any value are refused.
    """
    if block.dtype.kind != "f":
        return
    with np.errstate(all="ignore"):
        if np.isfinite(block.sum()):  # one pass without a temporary; the exact look follows only when it fails
            return
    rows = block.reshape(len(block), -1)
    if not missing:
        bad, problem = ~np.isfinite(rows).all(axis=1), "NaN or Inf"
    else:
        bad, problem = np.isinf(rows).any(axis=1) | np.isnan(rows).all(axis=1), "Inf, or no value at all,"
    bad = np.flatnonzero(bad)
    if bad.size:
        named = ", ".join(str(first_row + int(row)) for row in bad[:5])
        more = f" and {bad.size - 5} more" if bad.size > 5 else ""
        last = first_row + len(block) - 1
        raise BadData(
            f"{what}: {problem} in row {named}{more} of rows {first_row} to {last} (counted from 0), and perhaps in "
            "others: repair or drop them"
        )
