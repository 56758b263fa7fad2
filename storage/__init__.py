"""What is read and kept: sharded data sets and versioned artifacts, on a local path or in S3.

Data sets: `open_dataset`, `create_dataset`; sources become data sets in `ingest`. Artifacts: `ArtifactStore`.
Errors: the `StorageError` family.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import BadData, NotFound, StorageError, StoreConflict, Unreachable

if TYPE_CHECKING:
    from .artifacts import ArtifactStore
    from .datasets import Dataset, DatasetWriter, Shard, choose_layout, create_dataset, open_dataset, open_writer
    from .ingest import ArraysSource, GeneratedSource, ImagesSource, SeriesSource, SoundsSource
    from .locations import Location, locate

# Imported when first asked for: zarr, obstore and icechunk take most of a second to load.
LAZY = {
    "ArraysSource": ".ingest",
    "ArtifactStore": ".artifacts",
    "Dataset": ".datasets",
    "DatasetWriter": ".datasets",
    "GeneratedSource": ".ingest",
    "ImagesSource": ".ingest",
    "Location": ".locations",
    "SeriesSource": ".ingest",
    "Shard": ".datasets",
    "SoundsSource": ".ingest",
    "choose_layout": ".datasets",
    "create_dataset": ".datasets",
    "locate": ".locations",
    "open_dataset": ".datasets",
    "open_writer": ".datasets",
}

__all__ = [
    "ArraysSource",
    "ArtifactStore",
    "BadData",
    "Dataset",
    "DatasetWriter",
    "GeneratedSource",
    "ImagesSource",
    "Location",
    "NotFound",
    "SeriesSource",
    "Shard",
    "SoundsSource",
    "StorageError",
    "StoreConflict",
    "Unreachable",
    "choose_layout",
    "create_dataset",
    "locate",
    "open_dataset",
    "open_writer",
]


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(LAZY[name], __name__), name)
