"""Reads and writes the shard files of a local array of floats: no zarr in between, no copy of whole chunks.

Only for the one layout that such arrays have here: rows sharded along the first axis, chunks stored as they are in
memory, each followed by its CRC-32C, the index of chunks at the end of the file (sharding codec of Zarr v3). Everything
else, and everything in S3, goes through zarr; the files are the same.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import IO
from uuid import uuid4

import google_crc32c
import numpy as np

from .errors import BadData

CHECKSUM = 4
NO_CHUNK = np.iinfo(np.uint64).max


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """The shard files of one array [N, *row_shape]. A value: threads may share it."""

    folder: Path
    shard_rows: int
    chunk_rows: int
    row_shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start…stop-1, [stop - start, *row_shape]. BadData when a checksum is wrong or rows are missing."""
        out = np.empty((stop - start, *self.row_shape), self.dtype)
        for shard in range(start // self.shard_rows, -(-stop // self.shard_rows)):
            first = shard * self.shard_rows
            low, high = max(start, first), min(stop, first + self.shard_rows)
            self._read_shard(shard, low - first, high - first, out[low - start : high - start])
        return out

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder.joinpath("c", str(shard), *("0" for _ in self.row_shape))

    def write(self, shard: int, block: np.ndarray) -> None:
        """All rows of one shard, [≤ shard_rows, *row_shape]; readers see the old file or the new one."""
        path = self.path(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        index = np.full((self.shard_rows // self.chunk_rows, 2), NO_CHUNK, "<u8")
        block = np.ascontiguousarray(block, self.dtype)
        partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
        try:
            with partial.open("wb") as file:
                for chunk, at in enumerate(range(0, len(block), self.chunk_rows)):
                    rows = block[at : at + self.chunk_rows]
                    if len(rows) < self.chunk_rows:  # chunks have one size: the last is filled up with NaN
                        rows = np.full((self.chunk_rows, *self.row_shape), np.nan, self.dtype)
                        rows[: len(block) - at] = block[at:]
                    index[chunk] = file.tell(), rows.nbytes + CHECKSUM
                    _write_chunk(file, rows)
                _write_chunk(file, index)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def _read_shard(self, shard: int, low: int, high: int, out: np.ndarray) -> None:
        """Rows low…high-1, counted within the shard, into `out`."""
        size = self.chunk_rows
        chunk_bytes = size * int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize
        try:
            file = self.path(shard).open("rb", buffering=0)
        except FileNotFoundError as error:
            raise BadData(f"{self.folder}: shard {shard} is missing") from error
        with file:
            index = self._index(file, shard)
            for chunk in range(low // size, -(-high // size)):
                offset, length = (int(v) for v in index[chunk])
                where = f"{self.folder}: shard {shard}, chunk {chunk}"
                if length != chunk_bytes + CHECKSUM:
                    raise BadData(f"{where} was never written or is damaged")
                begin, end = max(low, chunk * size), min(high, (chunk + 1) * size)
                target = out[begin - low : end - low]
                if end - begin == size:
                    _read_chunk(file, offset, target, where)
                else:
                    whole = np.empty((size, *self.row_shape), self.dtype)
                    _read_chunk(file, offset, whole, where)
                    target[...] = whole[begin - chunk * size : end - chunk * size]

    def _index(self, file: FileIO, shard: int) -> np.ndarray:
        """[chunks, 2] offset and length of every chunk."""
        chunks = self.shard_rows // self.chunk_rows
        index = np.empty((chunks, 2), "<u8")
        at = file.seek(0, 2) - index.nbytes - CHECKSUM
        _read_chunk(file, at, index, f"{self.folder}: the index of shard {shard}")
        return index


def _read_chunk(file: FileIO, offset: int, out: np.ndarray, where: str) -> None:
    """Bytes at `offset` into `out`, compared with the CRC-32C that follows them."""
    flat = out.reshape(-1).view(np.uint8)
    stored = bytearray(CHECKSUM)
    if offset < 0 or file.seek(offset) != offset or not (_fill(file, flat.data) and _fill(file, stored)):
        raise BadData(f"{where} is cut off: the file is damaged")
    if google_crc32c.value(flat) != int.from_bytes(stored, "little"):
        raise BadData(f"{where}: the checksum is wrong, the file is damaged")


def _write_chunk(file: IO[bytes], block: np.ndarray) -> None:
    flat = block.reshape(-1).view(np.uint8)
    file.write(flat.data)
    file.write(int(google_crc32c.value(flat)).to_bytes(CHECKSUM, "little"))


def _fill(file: FileIO, target: memoryview | bytearray) -> bool:
    """Reads until `target` is full; False at the end of the file."""
    view, at = memoryview(target), 0
    while at < len(view):
        got = file.readinto(view[at:])
        if not got:
            return False
        at += got
    return True
