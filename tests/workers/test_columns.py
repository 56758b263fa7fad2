"""Models that read several arrays of a data set: learned and encoded through the programs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sparsefleet.models import Batch
from sparsefleet.pipelines.encoding import encode
from sparsefleet.pipelines.learning import learn
from sparsefleet.storage import create_dataset, open_dataset
from sparsefleet.workers import EncodeJob, JobError, LearnJob
from sparsefleet.workers.columns import read_columns, widths
from sparsefleet.workers.plan import plan
from sparsefleet.workers.start import load_dictionary

ROWS, DIM, OUT = 600, 10, 6


@pytest.fixture
def data(tmp_path) -> str:
    """Rows, what a layer makes of them, and the gradient of a loss by each."""
    rng = np.random.default_rng(0)
    x = (rng.random((ROWS, 20)) < 0.1) @ rng.normal(size=(20, DIM)) + 0.05 * rng.normal(size=(ROWS, DIM))
    arrays = {"data": x, "outputs": np.tanh(x @ rng.normal(size=(DIM, OUT))), "gradients": rng.normal(size=x.shape)}
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    layout = {name: ((value.shape[1],), "float32") for name, value in arrays.items()}
    uri = str(tmp_path / "side.zarr")
    writer = create_dataset(uri, rows=ROWS, arrays=layout, shard_rows=200, chunk_rows=50, attributes={"made": "a test"})
    for shard in writer.shards():
        writer.write(shard, **{name: value[shard.slice] for name, value in arrays.items()})
    writer.finish()
    return uri


def job(data, tmp_path, model, **settings) -> LearnJob:
    values = {"data": data, "store": str(tmp_path / "store"), "model": model, "atoms": 32, "settings": settings}
    return LearnJob.parse(values | {"passes": 2, "batch_rows": 100, "name": model, "threads": 1})


def test_columns_stand_side_by_side(data):
    opened = open_dataset(data)
    assert widths(opened, ("data", "outputs")) == (DIM, OUT)
    rows = read_columns(opened, ("outputs", "data"), 5, 9)
    assert np.array_equal(rows, np.hstack([opened.read(5, 9, "outputs"), opened.read(5, 9)]))
    with pytest.raises(JobError, match=r"no array 'inputs', which the model reads: it has data, outputs, gradients"):
        widths(opened, ("data", "inputs"))


@pytest.mark.parametrize(("name", "remedy"), [("gradients", "--gradients"), ("outputs", "--target SITE")])
def test_what_harvest_can_write_is_named_with_its_option(tmp_path, name, remedy):
    layout = {"data": ((DIM,), "float32")}
    uri = str(tmp_path / "bare.zarr")
    writer = create_dataset(uri, rows=4, arrays=layout, shard_rows=4, chunk_rows=4, attributes={"made": "a test"})
    for shard in writer.shards():
        writer.write(shard, data=np.ones((4, DIM), np.float32))
    data = writer.finish()
    with pytest.raises(JobError, match=f"no array '{name}'.* it has data; `sparsefleet harvest {remedy}` writes one$"):
        widths(data, ("data", name))


def test_a_gradient_autoencoder_learns_and_encodes(data, tmp_path):
    result = learn(job(data, tmp_path, "gsae", k=3))
    assert result.fit.step == 12
    encode(EncodeJob.parse(_encoding(data, tmp_path, "gsae")))
    codes = open_dataset(str(tmp_path / "gsae.codes"))
    assert codes.read(0, ROWS, "indices").shape == (ROWS, 3)


def test_a_gradient_autoencoder_can_encode_by_gradient(data, tmp_path):
    learn(job(data, tmp_path, "gsae", k=3, beta=5.0, encode_by="gradient"))
    encode(EncodeJob.parse(_encoding(data, tmp_path, "gsae")))
    found = load_dictionary(EncodeJob.parse(_encoding(data, tmp_path, "gsae")))
    rows = torch.from_numpy(read_columns(open_dataset(data), ("data", "gradients"), 0, ROWS))
    wanted = found.model.encode(found.params, Batch(rows)).indices.numpy()
    assert np.array_equal(open_dataset(str(tmp_path / "gsae.codes")).read(0, ROWS, "indices"), wanted)


def test_a_transcoder_learns_and_encodes_its_inputs(data, tmp_path):
    learned = job(data, tmp_path, "topk", k=3, target="outputs")
    assert plan(learned).statistics_bytes > 4 * 32 * (DIM + OUT)
    learn(learned)
    encode(EncodeJob.parse(_encoding(data, tmp_path, "topk")))
    found = load_dictionary(EncodeJob.parse(_encoding(data, tmp_path, "topk")))
    assert found.model.dictionary(found.params).shape == (OUT, 32)
    assert found.model.input_dim(found.params) == DIM


def test_a_missing_array_is_named_before_the_start(data, tmp_path):
    with pytest.raises(JobError, match="no array 'grads'"):
        learn(job(data, tmp_path, "gsae", k=3, gradients="grads"))


def _encoding(data, tmp_path, name):
    return {
        "data": data,
        "store": str(tmp_path / "store"),
        "dictionary": name,
        "out": str(tmp_path / f"{name}.codes"),
        "threads": 1,
    }
