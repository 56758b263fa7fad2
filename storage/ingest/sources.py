"""Matrices in files, read block by block: .npy, .npz, HDF5 and Parquet. None is ever whole in memory.

What cannot be read from the middle (members of an .npz, columns of a Parquet file) is first unpacked, as a stream, into
a .npy in a scratch folder beside the output.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..errors import BadData, NotFound, StorageError
from ..layout import first_problem
from ..locations import locate, reaching

if TYPE_CHECKING:
    from pyarrow import Array
    from pyarrow.parquet import ParquetFile

KEY = "::"
PACKAGE = "package:"
WHOLE_HASH = 1 << 28
"""Files up to this size (256 MB) are hashed whole, larger ones at evenly spaced blocks."""
HASH_BLOCK = 1 << 20
HASH_BLOCKS = 64
BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Rows:
    """A matrix in a file: `read(start, stop)` gives rows [stop - start, *row_shape] in the file's dtype."""

    name: str
    rows: int
    row_shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]


@dataclass(frozen=True, slots=True)
class Source:
    """A file, and the part of it that is meant: a member of an .npz, a data set of an HDF5 file, columns of Parquet."""

    path: Path
    key: str | None

    @property
    def name(self) -> str:
        """As the user wrote it."""
        return str(self.path) if self.key is None else f"{self.path}{KEY}{self.key}"

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Name (without folder), size and hash."""
        key = {} if self.key is None else {"key": self.key}
        return file_fingerprint(self.path) | key


def find_sources(specs: Sequence[str]) -> list[Source]:
    """The files that `specs` name (patterns expanded), in order. NotFound or BadData."""
    found: list[Source] = []
    for spec in specs:
        name, _, key = (spec, "", "") if Path(spec).exists() else spec.partition(KEY)
        if "://" in name or "\0" in name or not name:
            raise BadData(f"{spec!r}: matrices are read from files on this machine; copy them here first")
        paths = [Path(name)] if Path(name).exists() else sorted(map(Path, glob.glob(name, recursive=True)))
        if not paths:
            raise NotFound(f"{name}: no such file, and no pattern with matches")
        for path in paths:
            if path.suffix.lower() not in READERS or path.is_dir():
                raise BadData(f"{path}: a matrix is read from {', '.join(READERS)}")
            found.append(Source(path, key or None))
    return found


def find_files(sources: Sequence[str], suffixes: Sequence[str], what: str) -> list[Path]:
    """The files that `sources` name, each once, in order: files, folders (searched for `suffixes` with all below),
    patterns, and files of an installed package (`package:NAME/PATTERN`).

    Raises:
        NotFound, BadData: a source gives none; `what` is being looked for.
    """
    paths: dict[Path, None] = {}
    for source in sources:
        paths.update(dict.fromkeys(_expand(source, suffixes, what)))
    return list(paths)


def _expand(source: str, suffixes: Sequence[str], what: str) -> list[Path]:
    if source.startswith(PACKAGE):
        return _expand(_in_package(source), suffixes, what)
    if "://" in source or "\0" in source or not source:
        raise BadData(f"{source!r}: {what} are read from files on this machine; copy them here first")
    path = Path(source)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
        if not found:
            raise BadData(f"{source} has no {what} (looked for {' '.join(suffixes)})")
        return found
    if path.exists():
        return [path]
    found = sorted(p for p in map(Path, glob.glob(source, recursive=True)) if p.is_file())
    if not found:
        raise NotFound(f"{source}: no such file, folder or pattern with matches")
    return found


def _in_package(source: str) -> str:
    """`package:NAME/PATTERN` as a pattern on this machine; NotFound where the package is not installed."""
    name, _, inside = source.removeprefix(PACKAGE).partition("/")
    found = find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise NotFound(f"{source}: no package {name!r} is installed; install it, or name files of your own")
    return str(Path(next(iter(found.submodule_search_locations))) / inside)


@contextmanager
def open_sources(sources: Sequence[Source], out: str) -> Generator[list[Rows]]:
    """All matrices, opened; what had to be unpacked for them is removed at the end.

    Raises:
        BadData: a file is empty or damaged, has no rows, or is not a matrix of real numbers.
        StorageError: a package is missing, or there is no space to unpack.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(scratch(out))
        opened: list[Rows] = []
        for number, source in enumerate(sources):
            read = READERS[source.path.suffix.lower()]
            try:
                opened.append(read(source, folder / f"{number}.npy", stack))
            except (StorageError, MemoryError):
                raise
            except FileNotFoundError as error:
                raise NotFound(f"{source.name}: no such file") from error
            except Exception as error:  # every library has its own way to say that a file is damaged
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise StorageError(f"{source.name}: no space left to unpack it in {folder.parent}") from error
                empty = " (it is empty)" if not source.path.stat().st_size else ""
                raise BadData(f"{source.name} cannot be read{empty}: {first_problem(error)}") from error
        yield opened


@contextmanager
def scratch(out: str) -> Generator[Path]:
    """A folder beside the output (in the system's own place when that is S3), removed at the end."""
    place = locate(out)
    near = None
    if place.is_local:
        near = place.path.parent
        with reaching(place):
            near.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}.scratch-", dir=near) as folder:
        yield Path(folder)


def file_fingerprint(path: Path) -> dict[str, Any]:
    """Name (without folder), bytes and SHA-256; of large files, of evenly spaced blocks."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            digest = hashlib.sha256(str(size).encode())
            if size <= WHOLE_HASH:
                file.seek(0)
                while part := file.read(HASH_BLOCK):
                    digest.update(part)
            else:
                for at in np.linspace(0, size - HASH_BLOCK, HASH_BLOCKS, dtype=np.int64).tolist():
                    file.seek(at)
                    digest.update(file.read(HASH_BLOCK))
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file") from error
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from error
    return {"name": path.name, "bytes": size, "sha256": digest.hexdigest(), "whole": size <= WHOLE_HASH}


def _checked(name: str, shape: tuple[int, ...], dtype: np.dtype, read: Callable[[int, int], np.ndarray]) -> Rows:
    if dtype.kind not in "fiub":
        raise BadData(f"{name} holds {dtype}: a data set needs real numbers (float, int, bool)")
    if len(shape) < 2:
        raise BadData(f"{name} has shape {list(shape)}: a matrix [rows, numbers] is needed; reshape it")
    if 0 in shape:
        raise BadData(f"{name} has shape {list(shape)}: there is nothing in it")
    return Rows(name, shape[0], shape[1:], read)


def _read_npy(source: Source, unpacked: Path, stack: ExitStack) -> Rows:
    del unpacked, stack
    if source.key is not None:
        raise BadData(f"{source.name}: a .npy holds one array, leave out {KEY}{source.key}")
    return _npy(source.path, source.name)


def _npy(path: Path, name: str) -> Rows:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        offset, size = file.tell(), file.seek(0, 2)
    if not dtype.hasobject and size < offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise BadData(f"{name} is cut off: it has {size} bytes, too few for {dtype}{list(shape)}")
    row = int(np.prod(shape[1:], dtype=np.int64))

    def read(start: int, stop: int) -> np.ndarray:
        if not fortran:
            block = np.fromfile(path, dtype, (stop - start) * row, offset=offset + start * row * dtype.itemsize)
            return block.reshape(stop - start, *shape[1:])
        # A new map each time: its pages go with it, so that memory stays flat.
        return np.array(np.memmap(path, dtype, "r", offset, shape, "F")[start:stop])

    return _checked(name, shape, dtype, read)


def _read_npz(source: Source, unpacked: Path, stack: ExitStack) -> Rows:
    del stack
    with zipfile.ZipFile(source.path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        key = _choose(source, list(members), "arrays")
        with archive.open(members[key]) as packed, unpacked.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    return _npy(unpacked, source.name)


def _read_hdf5(source: Source, unpacked: Path, stack: ExitStack) -> Rows:
    del unpacked
    try:
        import h5py
    except ImportError as error:
        raise StorageError(f"{source.name} needs h5py: pip install 'sparsefleet[formats]'") from error
    file = stack.enter_context(h5py.File(source.path, "r"))
    matrices: list[str] = []

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and (source.key is not None or item.ndim > 1):
            matrices.append(name)

    file.visititems(note)
    wanted = None if source.key is None else source.key.strip("/")
    found = file[_choose(Source(source.path, wanted), matrices, "matrices")]
    assert isinstance(found, h5py.Dataset)
    return _checked(source.name, found.shape, found.dtype, lambda start, stop: np.asarray(found[start:stop]))


def _choose(source: Source, names: list[str], what: str) -> str:
    """The key that the user names, or the only one there is. BadData lists what there is."""
    if source.key in names:
        return source.key
    shown = ", ".join(sorted(names)[:10]) or "none"
    if source.key is not None:
        raise BadData(f"{source.path} has no {source.key!r}; it has {shown}")
    if len(names) != 1:
        raise BadData(f"{source.path} holds {len(names)} {what} ({shown}): name one as {source.path}{KEY}NAME")
    return names[0]


def _read_parquet(source: Source, unpacked: Path, stack: ExitStack) -> Rows:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise StorageError(f"{source.name} needs pyarrow: pip install 'sparsefleet[formats]'") from error
    file = stack.enter_context(pq.ParquetFile(source.path))
    columns = _choose_columns(source, file)
    rows, at = file.metadata.num_rows, 0
    with unpacked.open("wb") as plain:
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            parts = [_columns(batch.column(name), f"{source.path}: column {name!r}", at) for name in columns]
            block = np.hstack(parts) if len(parts) > 1 else parts[0]
            if not at:
                width, dtype = block.shape[1], block.dtype if block.dtype.kind == "f" else np.dtype(np.float64)
                _write_header(plain, (rows, width), dtype)
            elif block.shape[1] != width:  # pyright: ignore[reportPossiblyUnboundVariable]
                raise BadData(f"{source.name}: rows from {at} on have {block.shape[1]} numbers, earlier ones {width}")  # pyright: ignore
            plain.write(np.ascontiguousarray(block, dtype).data)  # pyright: ignore
            at += len(block)
    if not rows:
        raise BadData(f"{source.name} has no rows")
    return _npy(unpacked, source.name)


def _choose_columns(source: Source, file: ParquetFile) -> list[str]:
    """The columns that the user names; otherwise all that are numbers, or the one that is lists of numbers."""
    import pyarrow.types as kinds

    types = {field.name: field.type for field in file.schema_arrow}

    def numeric(kind: Any) -> bool:
        return kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind)

    def lists(kind: Any) -> bool:
        any_list = kinds.is_fixed_size_list(kind) or kinds.is_list(kind) or kinds.is_large_list(kind)
        return any_list and numeric(kind.value_type)

    if source.key is None:
        numbers = [name for name, kind in types.items() if numeric(kind)]
        chosen = numbers or [name for name, kind in types.items() if lists(kind)]
        if not chosen:
            raise BadData(f"{source.path} has no column of numbers; it has {', '.join(types)}")
        return chosen
    chosen = [name.strip() for name in source.key.split(",")]
    for name in chosen:
        if name not in types:
            raise BadData(f"{source.path} has no column {name!r}; it has {', '.join(types)}")
        if not (numeric(types[name]) or lists(types[name])):
            raise BadData(f"{source.path}: column {name!r} is {types[name]}, a data set needs numbers")
    return chosen


def _columns(column: Array, what: str, first_row: int) -> np.ndarray:
    """[rows, width] of a column of numbers (width 1; missing ones NaN) or of lists that all have `width` numbers."""
    import pyarrow.compute as compute
    import pyarrow.types as kinds

    kind: Any = column.type
    if not kinds.is_nested(kind):
        return np.asarray(column.to_numpy(zero_copy_only=False))[:, None]
    if column.null_count:
        row = first_row + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise BadData(f"{what} is empty in row {row} (counted from 0): drop or repair that row")
    lengths = np.asarray(compute.list_value_length(column))  # pyright: ignore
    uneven = np.flatnonzero(lengths != lengths[0])
    if uneven.size:
        row = int(uneven[0])
        raise BadData(f"{what} has {lengths[row]} numbers in row {first_row + row}, others have {lengths[0]}")
    flat: Any = compute.list_flatten(column)  # pyright: ignore
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(column), int(lengths[0]))


def _write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})  # pyright: ignore


READERS: dict[str, Callable[[Source, Path, ExitStack], Rows]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".parquet": _read_parquet,
}
"""One line a format: file ending → reader."""
