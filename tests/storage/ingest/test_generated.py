"""Rows drawn from a model: the same whoever draws them, with the moments that the model says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sparsefleet.storage import BadData, NotFound
from sparsefleet.storage.datasets import Dataset, Shard
from sparsefleet.storage.ingest import GeneratedSource, ingest
from sparsefleet.storage.ingest.generated import TRUTH, draw, true_atoms


def job(tmp_path: Path, **more: Any) -> GeneratedSource:
    return GeneratedSource(**({"out": str(tmp_path / "g.zarr"), "rows": 600, "shard_rows": 100} | more))


def everything(found: Dataset) -> np.ndarray:
    return found.read(0, found.rows)


def test_the_truth_lies_beside_the_data(tmp_path):
    found = ingest(job(tmp_path, size=4, vertical=-0.5))
    truth = found.side(TRUTH)
    assert truth.shape == (16, 8)
    assert found.patch_shape == (4, 4)
    np.testing.assert_array_equal(truth[:, 1].reshape(4, 4)[1], 10)
    np.testing.assert_array_equal(truth[:, 4 + 2].reshape(4, 4)[:, 2], -5)
    assert np.count_nonzero(truth) == 8 * 4
    assert found.verify() == []


def test_a_shard_is_the_same_whenever_it_is_drawn(tmp_path):
    source = job(tmp_path)
    found, weights = ingest(source), true_atoms(source)
    for shard in reversed(found.shards()):
        np.testing.assert_array_equal(draw(source, weights, shard)[0], found.read(shard.start, shard.stop))
    again = ingest(job(tmp_path, out=str(tmp_path / "again.zarr")))
    np.testing.assert_array_equal(everything(again), everything(found))
    assert again.fingerprint == found.fingerprint
    other = ingest(job(tmp_path, out=str(tmp_path / "other.zarr"), seed=1))
    assert np.abs(everything(other) - everything(found)).max() > 1
    blocks = everything(found).reshape(6, 100, -1)
    assert np.abs(blocks[0] - blocks[1]).max() > 1


def test_sums_have_the_moments_of_the_model(tmp_path):
    source = job(tmp_path, values=[-1, 0, 2], p=[0.1, 0.7, 0.2], sigma=0.5, rows=40_000, shard_rows=10_000)
    x, weights = everything(ingest(source)), true_atoms(source)
    mean, variance = 0.3, 0.1 + 0.8 - 0.3**2
    np.testing.assert_allclose(x.mean(0), mean * weights.sum(1), atol=0.2)
    np.testing.assert_allclose(np.cov(x.T), variance * weights @ weights.T + 0.25 * np.eye(25), atol=3)


def test_a_slab_multiplies_every_latent(tmp_path):
    source = job(tmp_path, slab_mean=2.0, slab_std=0.0, sigma=0.0)
    weights, shard = true_atoms(source), Shard(0, 0, 100)
    rows, latents = draw(source, weights, shard)
    np.testing.assert_allclose(rows, 2 * latents @ weights.T, rtol=1e-6)
    varied = draw(source.model_copy(update={"slab_std": 1.0}), weights, shard)[0]
    assert np.abs(varied - rows).max() > 1


def test_maximal_causes_show_the_largest_magnitude(tmp_path):
    source = job(tmp_path, combine="max", vertical=-0.7, sigma=0.0, p=[0.5, 0.5])
    weights = true_atoms(source)
    rows, latents = draw(source, weights, Shard(3, 300, 400))
    on = latents[:, None, :] * weights
    slow = np.take_along_axis(on, np.abs(on).argmax(2)[:, :, None], 2)[:, :, 0]
    np.testing.assert_allclose(rows, slow)


def test_atoms_from_a_file(tmp_path):
    weights = np.random.default_rng(0).normal(size=(7, 3))
    np.savez(tmp_path / "params.npz", W=weights, pi=np.ones(3))
    found = ingest(job(tmp_path, atoms=f"{tmp_path / 'params.npz'}::W"))
    np.testing.assert_array_equal(found.side(TRUTH), weights)
    assert found.dim == 7
    assert found.patch_shape is None
    with pytest.raises(NotFound):
        ingest(job(tmp_path, atoms=str(tmp_path / "none.npy"), overwrite=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["amplitude", "vertical", "slab_mean", "slab_std", "sigma", "values"])
def test_what_is_not_finite_is_named(tmp_path, name, value):
    with pytest.raises(ValidationError, match=name):
        job(tmp_path, **{name: [0.0, value] if name == "values" else value})


@pytest.mark.parametrize(
    "values", [{"p": [0.5, 0.6]}, {"p": [0.1, 0.2, 0.7]}, {"p": [-0.5, 1.5]}, {"sigma": -1}, {"rows": 0}, {"size": 1}]
)
def test_what_is_no_model_is_refused(tmp_path, values):
    with pytest.raises((BadData, ValidationError)):
        job(tmp_path, **values)
