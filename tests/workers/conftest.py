"""A small real data set on disk: sparse combinations of random atoms plus noise."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sparsefleet.storage import create_dataset

MakeData = Callable[..., str]


@pytest.fixture
def make_data(tmp_path: Path) -> MakeData:
    def make(
        rows: int = 2000, dim: int = 16, *, name: str = "data.zarr", shard_rows: int = 256, chunk_rows: int = 64
    ) -> str:
        rng = np.random.default_rng(3)
        atoms = rng.normal(size=(dim, 2 * dim)) * 2
        codes = rng.random((rows, 2 * dim)) < 2 / (2 * dim)
        values = (codes @ atoms.T + 0.3 * rng.normal(size=(rows, dim))).astype(np.float32)
        uri = str(tmp_path / name)
        writer = create_dataset(
            uri,
            rows=rows,
            arrays={"data": ((dim,), "float32")},
            shard_rows=shard_rows,
            chunk_rows=chunk_rows,
            attributes={"kind": "dense", "made": "by a test"},
        )
        for shard in writer.shards():
            writer.write(shard, data=values[shard.slice])
        writer.finish()
        return uri

    return make
