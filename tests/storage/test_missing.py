"""Data sets whose NaN are missing values: kept where that was said, refused everywhere else."""

import numpy as np
import pytest
from sparsefleet.storage import ArraysSource, BadData, create_dataset, open_dataset
from sparsefleet.storage.ingest import ingest


def rows(n=50, dim=4):
    x = np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32)
    x[::3, 1:] = np.nan
    x[1, 0] = np.nan
    return x


def written(uri, x, **more):
    layout = {"data": ((x.shape[1],), "float32")}
    writer = create_dataset(uri, rows=len(x), arrays=layout, shard_rows=20, chunk_rows=10, attributes={}, **more)
    for shard in writer.shards():
        writer.write(shard, data=x[shard.slice])
    return writer.finish()


def test_missing_values_come_back_as_they_were(tmp_path):
    x, uri = rows(), str(tmp_path / "x.zarr")
    written(uri, x, missing=True)
    data = open_dataset(uri)
    assert data.missing
    np.testing.assert_array_equal(data.read(0, 50), x)
    assert data.verify() == []
    with pytest.raises(BadData, match="NaN or Inf in row 0, 1, 3"):
        written(str(tmp_path / "y.zarr"), x)


@pytest.mark.parametrize(("bad", "row"), [(np.inf, 7), (np.nan, 21)])
def test_infinite_values_and_empty_rows_are_refused(tmp_path, bad, row):
    x = rows()
    x[row] = bad
    with pytest.raises(BadData, match=f"Inf, or no value at all, in row {row} "):
        written(str(tmp_path / "x.zarr"), x, missing=True)


def test_a_matrix_with_missing_values_is_ingested_when_asked_for(tmp_path):
    x, source = rows(), tmp_path / "x.npy"
    np.save(source, x)
    job = {"sources": [str(source)], "out": str(tmp_path / "x.zarr")}
    with pytest.raises(BadData, match="NaN or Inf"):
        ingest(ArraysSource.model_validate(job))
    data = ingest(ArraysSource.model_validate(job | {"missing": True}))
    np.testing.assert_array_equal(data.read(0, 50), x)
    for more in ({"center": True}, {"whiten": "zca"}):
        with pytest.raises(BadData, match="neither centred nor whitened"):
            ingest(ArraysSource.model_validate(job | {"missing": True, "overwrite": True} | more))
