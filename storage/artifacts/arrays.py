"""Arrays inside a commit: checked on the way in, chunked along the first axis, each chunk with its own crc32c."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, Protocol, TypeVar

import numpy as np
import psutil
import zarr
from numpy.typing import ArrayLike, NDArray
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.metadata import ArrayV3Metadata

from ..errors import BadData, StorageError
from .names import check_keys

Arrays = dict[str, NDArray[Any]]


class Pieces(Protocol):
    """An array that lies elsewhere, and is never in memory as a whole."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array; one dimension or more."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its numbers."""
        ...

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Part start…stop-1 along the first axis."""
        ...


A = TypeVar("A")

PARAMS, HISTORY, FIGURES = "params", "history", "figures"
CHUNK_BYTES = 8 * 2**20
PNG = b"\x89PNG\r\n\x1a\n"


def checked_params(arrays: Mapping[str, ArrayLike]) -> Arrays:
    """Arrays in native byte order and C order; BadData for what is not made of numbers."""
    check_keys(list(arrays), "an array")
    out: Arrays = {}
    for key, value in arrays.items():
        array = np.asarray(value, order="C")
        if array.dtype.kind not in "biufc":
            raise BadData(f"array {key!r} has dtype {array.dtype}: only numbers can be kept")
        out[key] = array.astype(array.dtype.newbyteorder("="), copy=False)
    return out


def checked_content(params: Arrays, pieces: Mapping[str, Pieces]) -> dict[str, NDArray[Any] | Pieces]:
    """Both together; BadData and StorageError as for `params` alone."""
    check_keys([*params, *pieces], "an array")
    for key, array in pieces.items():
        if array.dtype.kind not in "biufc":
            raise BadData(f"array {key!r} has dtype {array.dtype}: only numbers can be kept")
    return {**params, **pieces}


def checked_history(history: Mapping[str, ArrayLike]) -> Arrays:
    """Metrics over steps as 1-D float64 arrays; BadData for other shapes."""
    check_keys(list(history), "a metric")
    out: Arrays = {}
    for key, value in history.items():
        array = np.asarray(value, dtype=np.float64, order="C")
        if array.ndim != 1:
            raise BadData(f"history {key!r} has shape {array.shape}: give one number per step")
        out[key] = array
    return out


def checked_figures(figures: Mapping[str, bytes]) -> Arrays:
    """PNG files as arrays of uint8; BadData for other content."""
    for name, content in figures.items():
        if not content.startswith(PNG):
            raise BadData(f"figure {name!r} is not a PNG")
    return {name: np.frombuffer(content, np.uint8) for name, content in figures.items()}


def below(folder: str, arrays: Mapping[str, A]) -> dict[str, A]:
    """The same arrays under their path in a commit."""
    return {f"{folder}/{key}": array for key, array in arrays.items()}


def create_array(group: zarr.Group, key: str, array: NDArray[Any] | Pieces, *, overwrite: bool = False) -> None:
    """Puts a new array into a group."""
    rows = _chunk_rows(array)
    chunks = tuple(max(1, size) for size in (min(rows, *array.shape[:1]), *array.shape[1:])) if array.shape else ()
    made = group.create_array(
        key, shape=array.shape, dtype=array.dtype, chunks=chunks, compressors=[Crc32cCodec()], overwrite=overwrite
    )
    if not isinstance(array, np.ndarray):
        for start, piece in _pieces(array):
            made[start : start + len(piece)] = piece
    elif array.size:
        made[...] = array


def _chunk_rows(array: NDArray[Any] | Pieces) -> int:
    size = prod(array.shape) * array.dtype.itemsize
    return CHUNK_BYTES * (array.shape[0] if array.shape else 1) // max(1, size)


def _pieces(array: Pieces) -> Iterator[tuple[int, NDArray[Any]]]:
    """The array chunk by chunk: where each begins, and its numbers."""
    rows = max(1, _chunk_rows(array))
    for start in range(0, array.shape[0], rows):
        yield start, array.read(start, min(start + rows, array.shape[0]))


def read_arrays(group: zarr.Group, folder: str = "") -> Arrays:
    """All arrays of a group, or of a folder in it, by their key; none when there is no such folder."""
    found = group.get(folder) if folder else group
    if not isinstance(found, zarr.Group):
        return {}
    arrays = {key: member for key, member in sorted(found.members(max_depth=None)) if isinstance(member, zarr.Array)}
    _refuse_foreign(arrays)
    return {key: np.asarray(array[...]) for key, array in arrays.items()}


def _refuse_foreign(arrays: Mapping[str, zarr.Array[Any]]) -> None:
    """StorageError for what this module never writes: a store may come from anywhere, and zarr would believe it.

    Other codecs could unpack a little into a lot, or run code; a size is only a claim until it is allocated.
    """
    check_keys(list(arrays), "an array")
    for key, array in arrays.items():
        if array.dtype.kind not in "biufc":
            raise StorageError(f"array {key} has dtype {array.dtype}: a store holds numbers only, it is not read")
        codecs = array.metadata.codecs if isinstance(array.metadata, ArrayV3Metadata) else (None,)
        if not all(isinstance(codec, (BytesCodec, Crc32cCodec)) for codec in codecs):
            raise StorageError(f"array {key} is encoded as no store of ours encodes it: it is not read")
    size, room = sum(array.nbytes for array in arrays.values()), psutil.virtual_memory().available
    if size > room:
        raise StorageError(f"arrays of {size:,} bytes do not fit the {room:,} bytes of memory that are free")


def checksum(array: NDArray[Any] | Pieces) -> str:
    """sha256 of dtype, shape and values."""
    stored = array.dtype.newbyteorder("<")
    digest = hashlib.sha256(f"{stored.str}{array.shape}".encode())
    for values in [array] if isinstance(array, np.ndarray) else (piece for _, piece in _pieces(array)):
        digest.update(np.ascontiguousarray(values.astype(stored, copy=False)).reshape(-1).view(np.uint8).data)
    return f"sha256:{digest.hexdigest()}"
