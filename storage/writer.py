"""Making data sets: the whole store is laid out first, then its owners write whole shards, in any order, from anywhere.

A shard is the unit of writing: two writers of one shard would lose each other's rows, so parts of shards are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BadData, StorageError, StoreConflict
from .layout import DONE, FORMAT, HEADER, Header, Shard, make_header, parse_header, refuse_nonfinite
from .locations import Location, locate, reaching
from .reader import Dataset, member, open_array, open_group, read_done, read_header, read_side, shard_files

if TYPE_CHECKING:
    from zarr import Group

# Stands in the group until everything is laid out, so that a start that died there is known as ours.
BARE = {"format": FORMAT}


class DatasetWriter:
    """An unfinished data set. Several processes may hold one as long as every shard has one owner."""

    def __init__(self, place: Location, group: Group, header: Header) -> None:
        self._place = place
        self._group = group
        self._header = header
        self._arrays = {name: open_array(place, group, header, name) for name in header.arrays}
        self._files = {name: shard_files(place, header, name, array) for name, array in self._arrays.items()}

    @property
    def uri(self) -> str:
        """Where it lies."""
        return self._place.uri

    @property
    def attributes(self) -> dict[str, Any]:
        """What `create_dataset` was given."""
        return dict(self._header.attributes)

    def shards(self) -> list[Shard]:
        """All shards in order."""
        return self._header.shards

    def missing(self) -> list[Shard]:
        """The shards that are not written yet."""
        done = read_done(self._place, self._group)
        return [shard for shard in self.shards() if not done[shard.index]]

    def side(self, name: str) -> np.ndarray | None:
        """A small array kept beside the data, or None."""
        return read_side(self._place, self._group, self._header, name) if name in self._header.side else None

    def write(self, shard: Shard, **blocks: np.ndarray) -> None:
        """Writes all arrays of one whole shard, each [len(shard), …], then marks it as done.

        Raises:
            BadData: no shard of this data set, an array missing or too many, wrong shape or dtype, NaN or Inf.
            StorageError: the store cannot be written.
        """
        self._check(shard, blocks)
        with reaching(self._place):
            for name, block in blocks.items():
                if files := self._files[name]:
                    files.write(shard.index, block)
                else:
                    self._arrays[name][shard.slice] = block
            member(self._group, DONE)[shard.index] = 1

    def _check(self, shard: Shard, blocks: Mapping[str, np.ndarray]) -> None:
        shards = self.shards()
        if not 0 <= shard.index < len(shards) or shards[shard.index] != shard:
            raise BadData(
                f"{self.uri}: {shard} is not one of its {len(shards)} shards of {self._header.shard_rows} rows; "
                "only whole shards are written, parts would overwrite each other: take them from shards()"
            )
        if blocks.keys() != self._header.arrays.keys():
            raise BadData(f"{self.uri}: a shard needs {', '.join(self._header.arrays)}, got {', '.join(blocks)}")
        for name, block in blocks.items():
            layout = self._header.arrays[name]
            expected = ((len(shard), *layout.shape), layout.dtype)
            if (block.shape, str(block.dtype)) != expected:
                raise BadData(
                    f"{self.uri}: {name} of shard {shard.index} is {block.dtype}{list(block.shape)}, "
                    f"it must be {expected[1]}{list(expected[0])}"
                )
            allowed = self._header.missing and name == "data"
            refuse_nonfinite(block, f"{self.uri}: {name}", shard.start, missing=allowed)

    def finish(self) -> Dataset:
        """Declares the data set complete. StorageError when shards are missing."""
        if missing := self.missing():
            first = ", ".join(str(shard.index) for shard in missing[:5])
            count = f"{len(missing)} of {len(self.shards())}"
            raise StorageError(f"{self.uri}: {count} shards are not written ({first}, …)")
        self._header = self._header.model_copy(update={"finished": True})
        with reaching(self._place):
            self._group.attrs[HEADER] = self._header.model_dump(mode="json")
        return Dataset(self._place, self._group, self._header)

    def discard(self) -> None:
        """Removes the unfinished data set."""
        self._place.clear()


def create_dataset(
    uri: str,
    *,
    rows: int,
    arrays: Mapping[str, tuple[tuple[int, ...], str]],
    shard_rows: int,
    chunk_rows: int,
    attributes: Mapping[str, Any],
    side: Mapping[str, np.ndarray] | None = None,
    missing: bool = False,
    overwrite: bool = False,
) -> DatasetWriter:
    """Lays out a data set of N rows at `uri`, or continues the unfinished one of the same work.

    `arrays` maps a name to (shape of one row, dtype): `{"data": ((D,), "float32")}`, or for codes
    `{"indices": ((k,), "int32"), "values": ((k,), "float32")}`. `attributes` (plain JSON) says how the data set is
    made; with shapes and dtypes it is the fingerprint. `side` are small arrays kept beside the data (a continued data
    set keeps those that it has). With `missing` NaN stands for a missing value.

    Raises:
        BadData: sizes, names, dtypes or attributes that cannot be laid out.
        StoreConflict: a finished or another data set is there and `overwrite` is False, or something else is there.
        StorageError: the place cannot be written.
    """
    side = side or {}
    place = locate(uri)
    header = make_header(rows, arrays, shard_rows, chunk_rows, attributes, side, missing=missing)
    found = find_unfinished(place, overwrite=overwrite)
    if found is not None:
        if header.continues(found[1]):
            return DatasetWriter(place, *found)
        raise _conflict(place, "an unfinished data set of another recipe")
    return DatasetWriter(place, _lay_out(place, header, side), header)


def open_writer(uri: str) -> DatasetWriter:
    """The unfinished data set at `uri`. NotFound; StoreConflict when it is finished; StorageError when damaged."""
    place = locate(uri)
    read_header(place)  # says what is wrong where there is none
    group = open_group(place, read_only=False)
    assert group is not None
    header = parse_header(group.attrs.get(HEADER), place.uri)
    if header.finished:
        raise StoreConflict(f"{place.uri} is finished: nothing can be written to it")
    return DatasetWriter(place, group, header)


def find_unfinished(place: Location, *, overwrite: bool) -> tuple[Group, Header] | None:
    """The unfinished data set at `place`; None where a new one may be laid out (with `overwrite`: over the old one).

    Raises:
        StoreConflict: a finished data set is there and `overwrite` is False, or a group that is none of ours.
        StorageError: other files are there, or the place cannot be reached.
    """
    group = open_group(place, read_only=True)
    if group is None:
        return None
    raw = group.attrs.get(HEADER)
    if raw is None:
        raise StoreConflict(f"{place.uri} holds something else than a data set: choose another place")
    if overwrite or raw == BARE:
        return None
    header = parse_header(raw, place.uri)
    if header.finished:
        raise _conflict(place, "a finished data set")
    writable = open_group(place, read_only=False)
    assert writable is not None
    return writable, header


def check_writable(place: Location) -> None:
    """StorageError when no data set could be made at `place`: found out before hours of work, nothing is left there."""
    with reaching(place):
        if place.is_local:
            existing = next(p for p in (place.path, *place.path.parents) if p.exists())
            probe = existing / f".{place.name}.probe"
            try:
                probe.touch()
            except FileNotFoundError as error:  # what /proc and its like say
                raise StorageError(f"{place.uri} cannot be made: nothing can be written in {existing}") from error
            probe.unlink()
        else:
            import obstore

            store = place.child(".probe").object_store()
            obstore.put(store, "probe", b"")
            obstore.delete(store, "probe")


def _conflict(place: Location, what: str) -> StoreConflict:
    return StoreConflict(f"{place.uri} holds {what}: choose another place or pass --overwrite")


def _lay_out(place: Location, header: Header, side: Mapping[str, np.ndarray]) -> Group:
    """The whole store with nothing in it yet; the header comes last."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    place.clear()
    checksum = Crc32cCodec()
    with reaching(place):
        group = zarr.create_group(place.zarr_store(read_only=False), attributes={HEADER: BARE}, zarr_format=3)
        for name, layout in header.arrays.items():
            # Whitened data and activations are noise to a compressor; indices and bytes are not.
            packed = [] if layout.dtype.startswith("float") else [ZstdCodec(level=1)]
            group.create_array(
                name,
                shape=(header.rows, *layout.shape),
                dtype=layout.dtype,
                chunks=(header.chunk_rows, *layout.shape),
                shards=(header.shard_rows, *layout.shape),
                compressors=[*packed, checksum],
                fill_value=layout.fill_value,
                config={"write_empty_chunks": True},
            )
        for name, array in side.items():
            group.create_array(name, data=np.asarray(array), chunks=array.shape, compressors=[checksum])
        group.create_array(
            DONE, shape=(len(header.shards),), dtype="uint8", chunks=(1,), compressors=[checksum], fill_value=0
        )
        group.attrs[HEADER] = header.model_dump(mode="json")
    return group
