"""Receptive fields are what the preprocessing makes of pixels; usage is what the codes say."""

import numpy as np
import pytest
from sparsefleet.pipelines.errors import PipelineError
from sparsefleet.pipelines.fields import receptive_fields
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


def test_rows_that_are_no_pictures_have_none(tmp_path):
    np.save(tmp_path / "w.npy", np.eye(6))
    data = ingest(GeneratedSource(out=str(tmp_path / "g.zarr"), atoms=str(tmp_path / "w.npy"), rows=100))
    with pytest.raises(PipelineError, match="no grey patches"):
        receptive_fields(data, np.eye(6))
