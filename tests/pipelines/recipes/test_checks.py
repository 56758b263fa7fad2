"""Checks measure what is there: with the true parameters nothing is wrong."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sparsefleet.models import make_model
from sparsefleet.pipelines.errors import PipelineError
from sparsefleet.pipelines.recipes.checks import Learned, auroc, events, fields, recovery, usage
from sparsefleet.storage.ingest import GeneratedSource, SeriesSource, ingest
from sparsefleet.workers import LearnJob

CASES = {
    "bsc": ({}, {}, {}),
    "tsc": ({"values": [-1, 0, 1], "p": [0.1, 0.8, 0.1]}, {}, {}),
    "dsc": (
        {"values": [0, 1, 2], "p": [0.8, 0.15, 0.05]},
        {"values": [2, 0, 1]},
        {"pi": [0.05, 0.8, 0.15], "values": [2.0, 0.0, 1.0]},
    ),
    "gsc": ({"slab_mean": 1.0, "slab_std": 0.5}, {}, {"pi": [0.2] * 10, "mu": [1.0] * 10, "psi": [0.25] * 10}),
    "mca": ({"combine": "max"}, {}, {}),
}


def learned(tmp_path, model: str, order: np.ndarray, extra: int = 0) -> Learned:
    source, settings, more = CASES[model]
    data = ingest(GeneratedSource(out=str(tmp_path / "b.zarr"), rows=800, **source))
    truth = data.side("truth")
    atoms = np.concatenate([truth, np.zeros((25, extra))], 1)[:, order]
    params = {"W": atoms, "pi": 0.2, "sigma": 2.0} | more
    tensors = {n: torch.as_tensor(v, dtype=torch.float64) for n, v in params.items()}
    job = LearnJob.parse({"data": data.uri, "model": model, "atoms": 10 + extra})
    settings = {"atoms": 10 + extra, "dtype": "float64", **settings}
    return Learned(job, make_model(model, settings), tensors, data, {"sigma": 2.0})


@pytest.mark.parametrize("model", CASES)
def test_the_truth_is_recovered(tmp_path, model):
    found = recovery(learned(tmp_path, model, np.random.default_rng(0).permutation(10)))
    values = found.values
    assert found.sentence.startswith("10 of 10 true atoms found")
    assert values["found"] == 10
    assert values["atoms_error"] == pytest.approx(0, abs=1e-12)
    assert values["sigma_error"] == 0
    assert values["pi_error"] < 0.02
    assert values["gain"] == pytest.approx(0, abs=1e-3)
    if model == "gsc":
        assert values["power_error"] == pytest.approx(0, abs=1e-12)


def test_surplus_atoms_are_counted(tmp_path):
    found = recovery(learned(tmp_path, "bsc", np.arange(13), extra=3))
    values = found.values
    assert values["found"] == 10
    assert values["surplus"] == 3
    assert values["surplus_usage"] < 0.2
    assert "the other 3 atoms" in found.sentence


def test_fields_of_bars_are_no_blobs(tmp_path):
    found = fields(learned(tmp_path, "bsc", np.arange(10)))
    assert found.values["used_atoms"] == 10
    assert found.values["globular_share"] < 0.3
    assert "10 of 10 atoms in use" in found.sentence
    assert set(found.figures) == {"usage.png", "fields.png"}
    assert all(Image.open(io.BytesIO(png)).size[0] > 50 for png in found.figures.values())


def test_usage_is_that_of_the_codes(tmp_path):
    found = usage(learned(tmp_path, "bsc", np.arange(10)))
    assert found.values["used_atoms"] == 10
    assert found.values["median_usage"] == pytest.approx(0.2, abs=0.05)


def test_data_without_truth_is_refused(tmp_path, bars):
    from sparsefleet.storage import open_dataset

    job = LearnJob.parse({"data": bars, "atoms": 8})
    with pytest.raises(PipelineError, match="keeps no true atoms"):
        recovery(Learned(job, job.build_model(), {}, open_dataset(bars), {}))


def test_events_are_what_the_atoms_cannot_say(tmp_path):
    rng = np.random.default_rng(0)
    x = np.outer(rng.normal(size=400), [1.0, 2.0]) + 0.01 * rng.normal(size=(400, 2))
    label = np.zeros(400)
    label[300:310], x[300:310, 1] = 1, -2 * x[300:310, 1]
    lines = [f"{a},{b},{e:g}" for (a, b), e in zip(x, label, strict=True)]
    (tmp_path / "a.csv").write_text("a,b,event\n" + "\n".join(lines))
    source = {"sources": [str(tmp_path / "a.csv")], "columns": ["a", "b"], "label": "event", "learn": 0.5}
    more = {"window": 1, "dc": False, "scale": False}
    data = ingest(SeriesSource(out=str(tmp_path / "w.zarr"), **source, **more))
    job = LearnJob.parse({"data": data.uri, "model": "ksvd", "atoms": 1})
    model = make_model("ksvd", {"atoms": 1, "nonzeros": 1, "dtype": "float64"})
    atoms = torch.tensor([[1.0, 2.0]], dtype=torch.float64) / 5**0.5
    found = events(Learned(job, model, {"atoms": atoms}, data, {}))
    assert found.values["events"] == 10 and found.values["quiet"] == 190
    assert found.values["auroc"] > 0.99 > found.values["energy_auroc"]
    assert found.values["found"] >= 0.9 and found.values["false_alarms"] < 0.05
    plain = ingest(SeriesSource(out=str(tmp_path / "all.zarr"), **{**source, "learn": 1.0}, **more))
    with pytest.raises(PipelineError, match="holds out no windows"):
        events(Learned(job, model, {"atoms": atoms}, plain, {}))


def test_auroc_counts_ties_half():
    assert auroc(np.array([2.0, 1.0]), np.array([1.0, 0.0])) == 0.875
