"""Receptive fields are what the preprocessing makes of pixels; usage is what the codes say."""

import numpy as np
import pytest
import torch
from sparsefleet.models import Batch, Probe, make_model
from sparsefleet.pipelines.errors import PipelineError
from sparsefleet.pipelines.fields import receptive_fields, usage_of_codes
from sparsefleet.storage import create_dataset
from sparsefleet.storage.ingest import GeneratedSource, ImagesSource, ingest
from sparsefleet.storage.ingest.images import PatchSampler, Photo, difference_of_gaussians


def images(tmp_path, **more):
    given = {"sources": ["sklearn:china.jpg"], "out": str(tmp_path / "p.zarr"), "patch": 8, "rows": 600}
    return ingest(ImagesSource(**(given | more)))


def test_filtered_scores_are_products_with_the_receptive_field(tmp_path):
    data = images(tmp_path, prefilter="dog", dc=False, whiten="none")
    atoms = np.random.default_rng(0).normal(size=(64, 3))
    fields = receptive_fields(data, atoms)
    assert fields.shape == (3, 16, 16)
    pixels = np.random.default_rng(1).random((16, 16))
    seen = difference_of_gaussians(pixels, tmp_path).reshape(-1)
    np.testing.assert_allclose(fields.reshape(3, -1) @ pixels.reshape(-1), seen @ atoms, rtol=1e-4)


def test_whitened_scores_are_products_with_the_receptive_field(tmp_path):
    data = images(tmp_path, whiten="zca", dc=False)
    atoms = np.random.default_rng(0).normal(size=(64, 3))
    job = ImagesSource(sources=["x"], out="x", patch=8, dc=False, min_std=0)
    photo = np.random.default_rng(1).random((8, 8)).astype(np.float32)
    patch = PatchSampler([Photo("x", photo)], job)._draw(np.random.default_rng(0), 1)
    scores = (patch - data.side("mean")) @ data.side("whiten") @ atoms
    found = (patch - data.side("mean")) @ receptive_fields(data, atoms).reshape(3, -1).T
    np.testing.assert_allclose(found, scores, rtol=1e-6)


def test_usage_reads_all_arrays_that_the_model_encodes(tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    layout = dict.fromkeys(("data", "gradients"), ((6,), "float32"))
    writer = create_dataset(
        str(tmp_path / "d.zarr"), rows=50, arrays=layout, shard_rows=50, chunk_rows=50, attributes={}
    )
    for shard in writer.shards():
        writer.write(shard, data=rows, gradients=rows)
    data = writer.finish()
    model = make_model("gsae", {"atoms": 12, "k": 2, "encode_by": "gradient"})
    probe = Probe(50, *(torch.from_numpy(np.tile(a, 2)) for a in (rows.mean(0), rows.var(0), rows)))
    params = model.init(probe, torch.Generator().manual_seed(0))
    usage = usage_of_codes(model, params, data)
    codes = model.encode(params, Batch(torch.from_numpy(np.hstack([rows, rows]))))
    expected = (codes.dense(12).abs() >= 0.1).double().mean(0)
    np.testing.assert_allclose(usage, expected.numpy())


def test_rows_that_are_no_pictures_have_none(tmp_path):
    np.save(tmp_path / "w.npy", np.eye(6))
    data = ingest(GeneratedSource(out=str(tmp_path / "g.zarr"), atoms=str(tmp_path / "w.npy"), rows=100))
    with pytest.raises(PipelineError, match="no grey patches"):
        receptive_fields(data, np.eye(6))
