"""Opening and reading data sets: sharded Zarr v3 groups, on a local path or in S3."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import psutil

from .errors import BadData, NotFound, StorageError
from .layout import DONE, HEADER, Header, Shard, array_sha256, first_problem, parse_header, refuse_nonfinite
from .locations import Location, locate, reaching
from .shards import ShardFiles

if TYPE_CHECKING:
    from zarr import Array, Group

# What `writer` asks zarr for: chunks as they are in memory, each followed by its checksum, the index at the end.
PLAIN_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
MAKE_ONE = "make one with 'sparsefleet ingest' or 'sparsefleet harvest'"


class Dataset:
    """A finished data set, opened for reading; threads may share it. Made by `open_dataset`."""

    def __init__(self, place: Location, group: Group, header: Header) -> None:
        self._place = place
        self._group = group
        self._header = header
        self._arrays = {name: open_array(place, group, header, name) for name in header.arrays}
        self._files = {name: shard_files(place, header, name, array) for name, array in self._arrays.items()}

    def __repr__(self) -> str:
        return f"Dataset({self.uri!r}, rows={self.rows}, dim={self.dim}, dtype={self.dtype}, kind={self.kind!r})"

    @property
    def uri(self) -> str:
        """Where it lies."""
        return self._place.uri

    @property
    def rows(self) -> int:
        """N."""
        return self._header.rows

    @property
    def dim(self) -> int:
        """D: numbers in one row of `data`; for codes k, the entries kept in one row of `values`."""
        return int(np.prod(self._header.main.shape, dtype=np.int64))

    def width(self, array: str) -> int:
        """Numbers in one row of `array`."""
        return int(np.prod(self._header.arrays[array].shape, dtype=np.int64))

    @property
    def dtype(self) -> np.dtype:
        """Type of `data`; for codes that of `values`."""
        return np.dtype(self._header.main.dtype)

    @property
    def kind(self) -> Literal["dense", "codes"]:
        """`dense`: one array `data` [N, D]. `codes`: `indices` [N, k] (-1: none) and `values` [N, k]."""
        return self._header.kind

    @property
    def shard_rows(self) -> int:
        """Rows in a shard (the last may have fewer)."""
        return self._header.shard_rows

    @property
    def chunk_rows(self) -> int:
        """Rows in a chunk, the smallest part that is read."""
        return self._header.chunk_rows

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that have one entry a row."""
        return tuple(self._header.arrays)

    @property
    def attributes(self) -> dict[str, Any]:
        """How it was made: recipe, fingerprints of the sources, meaning of a row, …"""
        return dict(self._header.attributes)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over recipe, fingerprints of the sources, shape and dtype: the same wherever the data set lies."""
        return self._header.fingerprint

    @property
    def nbytes(self) -> int:
        """Bytes of all rows in memory."""
        return self.rows * sum(array.row_bytes for array in self._header.arrays.values())

    @property
    def missing(self) -> bool:
        """Whether NaN stands for a missing value."""
        return self._header.missing

    @property
    def patch_shape(self) -> tuple[int, ...] | None:
        """Shape of one row in its source, e.g. (16, 16) or (16, 16, 3); None when rows are plain vectors."""
        shape = self._header.attributes.get("patch_shape")
        return tuple(int(str(n)) for n in shape) if isinstance(shape, list) else None

    def shards(self) -> list[Shard]:
        """All shards in order."""
        return self._header.shards

    def read(self, start: int, stop: int, array: str = "data") -> np.ndarray:
        """Rows start…stop-1 of `array`, [stop - start, …], the caller's own.

        Raises:
            BadData: rows out of range, an unknown array, or a wrong checksum.
            StorageError: the store does not answer.
        """
        if array not in self._arrays:
            raise BadData(f"{self.uri} has no array {array!r}: it has {', '.join(self._arrays)}")
        if not 0 <= start <= stop <= self.rows:
            raise BadData(f"{self.uri}: rows {start} to {stop} are asked for, but it has {self.rows}")
        files = self._files[array]
        with _decoding(self._place, f"rows {start} to {stop} of {array}"):
            if files is not None:
                return files.read(start, stop)
            block = np.asarray(self._arrays[array][start:stop])
        if block.dtype.kind == "f" and np.isnan(block.reshape(len(block), -1)).all(axis=1).any():
            # zarr gives the fill value for what is not there; a row that was written has a value.
            raise BadData(f"{self.uri}: rows {start} to {stop} of {array} are missing in part: the store is damaged")
        return block

    def side(self, name: str) -> np.ndarray | None:
        """A small array kept beside the data (`mean`, `whiten`, `unwhiten`, …), or None. BadData when damaged."""
        if name not in self._header.side:
            return None
        return read_side(self._place, self._group, self._header, name)

    def to_pixels(self, atoms: np.ndarray) -> np.ndarray:
        """Atoms [D, H] as they look in the source: [D0, H], the whitening undone. Unchanged without whitening."""
        if atoms.ndim != 2 or atoms.shape[0] != self.dim:
            raise BadData(f"atoms of shape {list(atoms.shape)} are not [{self.dim}, H] as the rows of {self.uri}")
        unwhiten = self.side("unwhiten")
        return atoms if unwhiten is None else unwhiten.T @ atoms

    def verify(self) -> list[str]:
        """Reads everything and lists what is wrong: checksums, NaN, rows never written, small arrays changed."""
        problems: list[str] = []
        done = read_done(self._place, self._group)
        if len(done) != len(self.shards()) or not done.all():
            problems.append(f"{self.uri}: {int((done == 0).sum())} shards are not marked as written")
        for name in self._header.side:
            problems += _problem_in(lambda name=name: read_side(self._place, self._group, self._header, name))
        for name in self._arrays:
            for shard in self.shards():
                problems += _problem_in(lambda name=name, shard=shard: self._check(name, shard))
        return problems

    def _check(self, name: str, shard: Shard) -> None:
        if self._files[name] is None:
            self._check_there(name, shard)
        block = self.read(shard.start, shard.stop, name)
        allowed = self.missing and name == "data"
        refuse_nonfinite(block, f"{self.uri}: {name}", shard.start, missing=allowed)
        if name == "indices":
            atoms = self._header.attributes.get("atoms")
            limit = atoms if isinstance(atoms, int) else np.iinfo(block.dtype).max
            if block.min() < -1 or block.max() >= limit:
                raise BadData(f"{self.uri}: shard {shard.index} names atoms outside of 0 to {limit - 1}")

    def _check_there(self, name: str, shard: Shard) -> None:
        """BadData when zarr would read the fill value because the shard's object is gone or empty."""
        from zarr.core.sync import sync

        store = self._place.zarr_store(read_only=True)
        key = "/".join([name, "c", str(shard.index), *("0" for _ in self._header.arrays[name].shape)])
        with metadata_of(self._place):
            if sync(store.exists(key)) and sync(store.getsize(key)):
                return
        raise BadData(f"{self.uri}: shard {shard.index} of {name} is missing")


def open_dataset(uri: str) -> Dataset:
    """The finished data set at `uri` (a path, file://… or s3://…).

    Raises:
        NotFound: nothing is there.
        StorageError: something else is there, it is unfinished or damaged, a newer version wrote it, or the store
            does not answer.
    """
    place = locate(uri)
    group, header = read_header(place)
    if not header.finished:
        done = read_done(place, group)
        missing = len(header.shards) - int((done != 0).sum())
        raise StorageError(
            f"{place.uri} is unfinished ({missing} of {len(header.shards)} shards missing): "
            "run the command that makes it again, it will continue"
        )
    return Dataset(place, group, header)


def read_header(place: Location) -> tuple[Group, Header]:
    """Group and header of the data set at `place`, finished or not. NotFound or StorageError."""
    group = open_group(place)
    if group is None:
        raise NotFound(f"no data set at {place.uri}: {MAKE_ONE}")
    raw = group.attrs.get(HEADER)
    if raw is None:
        raise StorageError(f"{place.uri} is not a data set of sparsefleet: {MAKE_ONE}")
    return group, parse_header(raw, place.uri)


def open_group(place: Location, *, read_only: bool = True) -> Group | None:
    """The zarr group at `place`, None when nothing is there; StorageError when something else is."""
    import zarr

    try:
        with metadata_of(place):
            mode = "r" if read_only else "r+"
            store = place.zarr_store(read_only=read_only)
            return zarr.open_group(store, mode=mode, zarr_format=3, use_consolidated=False)
    except NotFound:
        if place.is_local and place.path.is_file():
            raise StorageError(f"{place.uri} is a file, not a data set: {MAKE_ONE}") from None
        if place.is_empty():
            return None
        raise StorageError(f"{place.uri} is no data set: other files are there, but no zarr.json") from None


def read_done(place: Location, group: Group) -> np.ndarray:
    """[shards] uint8, 1 where a shard has been written."""
    with metadata_of(place):
        return np.asarray(member(group, DONE)[:])


def member(group: Group, name: str) -> Array[Any]:
    """The array `name` of a group."""
    from zarr import Array

    found = group[name]
    if not isinstance(found, Array):
        raise BadData(f"{name!r} is a group, not an array")
    return found


def read_side(place: Location, group: Group, header: Header, name: str) -> np.ndarray:
    """The small array `name`, compared with its SHA-256; BadData when they differ."""
    with _decoding(place, f"the array {name!r}"):
        stored = member(group, name)
        if stored.nbytes > psutil.virtual_memory().available:  # a size is only a claim until it is allocated
            raise BadData(f"{place.uri}: the array {name!r} claims {stored.nbytes:,} bytes, more than there is memory")
        array = np.asarray(stored[...])
    if array_sha256(array) != header.side[name]:
        raise BadData(f"{place.uri}: the array {name!r} is not the one that was written: it is damaged")
    return array


@contextmanager
def metadata_of(place: Location) -> Generator[None]:
    """Whatever goes wrong inside is one StorageError: zarr's own answers to damaged metadata are of many types."""
    try:
        with reaching(place):
            yield
    except StorageError:
        raise
    except Exception as error:
        raise StorageError(f"{place.uri}: its metadata is damaged ({first_problem(error)})") from error


@contextmanager
def _decoding(place: Location, what: str) -> Generator[None]:
    """As `metadata_of`, for content: zarr reports a wrong checksum as ValueError, a cut-off shard as anything."""
    try:
        with reaching(place):
            yield
    except StorageError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise BadData(f"{place.uri}: {what} cannot be read, the store is damaged ({first_problem(error)})") from error


def codec_pipeline(place: Location) -> Any:
    """A context in which zarr opens local arrays with the faster pipeline of the package zarrs, if it is installed."""
    import zarr

    if not place.is_local:
        return nullcontext()
    try:
        import_module("zarrs.pipeline")  # registers itself
    except ImportError:
        return nullcontext()
    return zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})


def open_array(place: Location, group: Group, header: Header, name: str) -> Array[Any]:
    """The array `name`, whose own metadata must agree with the header."""
    import zarr

    layout = header.arrays[name]
    with metadata_of(place), codec_pipeline(place):
        array = zarr.open_array(group.store_path / name, mode="r" if group.read_only else "r+", zarr_format=3)
        # Not kept with the array: without it a shard of nothing but the fill value would be left out, and seem lost.
        array = array.with_config({"write_empty_chunks": True})
        found = (array.shape, str(array.dtype), array.shards, array.chunks)
    rest = layout.shape
    expected = ((header.rows, *rest), layout.dtype, (header.shard_rows, *rest), (header.chunk_rows, *rest))
    if found != expected:
        raise StorageError(f"{place.uri}: metadata of {name!r} is damaged (found {found}, the header says {expected})")
    return array


def shard_files(place: Location, header: Header, name: str, array: Array[Any]) -> ShardFiles | None:
    """The array's files, when the array is local and stored as `ShardFiles` expects."""
    layout = header.arrays[name]
    dtype = np.dtype(layout.dtype).newbyteorder("<")
    codecs: Any = array.metadata.to_dict()["codecs"]
    if dtype.kind != "f" or not place.is_local or len(codecs) != 1 or codecs[0]["name"] != "sharding_indexed":
        return None
    inner = codecs[0]["configuration"]
    if not (list(inner["codecs"]) == list(inner["index_codecs"]) == PLAIN_CODECS and inner["index_location"] == "end"):
        return None
    return ShardFiles(place.path / name, header.shard_rows, header.chunk_rows, layout.shape, dtype)


def _problem_in(check: Any) -> list[str]:
    try:
        check()
    except StorageError as problem:
        return [str(problem)]
    return []
