"""Small data sets for the tests of data sets."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from sparsefleet.storage.datasets import Dataset, DatasetWriter, create_dataset

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make(uri: Path | str, x: np.ndarray, shard_rows: int = 8, chunk_rows: int = 4, **more: Any) -> DatasetWriter:
    attributes = more.pop("attributes", {"recipe": {"seed": 1}})
    return create_dataset(
        str(uri),
        rows=len(x),
        arrays={"data": (x.shape[1:], str(x.dtype))},
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        attributes=attributes,
        **more,
    )


def filled(uri: Path | str, x: np.ndarray, **more: Any) -> Dataset:
    writer = make(uri, x, **more)
    for shard in writer.shards():
        writer.write(shard, data=x[shard.slice])
    return writer.finish()


def ramp(rows: int = 21, dim: int = 3, dtype: str = "float32") -> np.ndarray:
    return np.arange(rows * dim).reshape(rows, dim).astype(dtype)
