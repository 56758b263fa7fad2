"""Data sets: Zarr v3 groups whose rows are sharded, checked and described, on a local path or in S3.

A group holds `data` [N, D] (or the codes' `indices` and `values` [N, k]), small arrays beside it (`mean`, `whiten`,
`unwhiten`), `done` (one byte a shard) and, under the attribute `sparsefleet`, how it was made.
"""

from .layout import Shard, choose_layout
from .reader import Dataset, open_dataset
from .writer import DatasetWriter, create_dataset, open_writer

__all__ = ["Dataset", "DatasetWriter", "Shard", "choose_layout", "create_dataset", "open_dataset", "open_writer"]
