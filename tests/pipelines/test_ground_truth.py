"""Recovery of the features that made the data: numbers of plain loops, and the whole way through `interpret`."""

import numpy as np
import pytest
import torch
from sparsefleet.models import Codes
from sparsefleet.pipelines import interpret, learn
from sparsefleet.pipelines.ground_truth import GroundTruth, known
from sparsefleet.pipelines.interpreting import InterpretJob
from sparsefleet.storage import open_dataset
from sparsefleet.storage.ingest import GeneratedSource, ingest
from sparsefleet.storage.ingest.generated import draw
from sparsefleet.workers import LearnJob
from sparsefleet.workers.progress import Progress

FEATURES, DIM = 12, 24


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> str:
    """Rows of signed features along random axes, in shards that batches do not end with."""
    folder = tmp_path_factory.mktemp("truth")
    axes = np.random.default_rng(0).normal(size=(DIM, FEATURES))
    np.save(folder / "axes.npy", axes / np.linalg.norm(axes, axis=0))
    ingest(GeneratedSource(
        out=str(folder / "rows.zarr"), atoms=str(folder / "axes.npy"), values=[-1, 0, 1], p=[0.05, 0.9, 0.05],
        sigma=0.01, rows=6000, shard_rows=2500,
    ))  # fmt: skip
    return str(folder / "rows.zarr")


def test_numbers_are_those_of_plain_loops(made):
    pytest.importorskip("scipy")
    data = open_dataset(made)
    truth = data.side("truth")
    assert truth is not None
    rng = np.random.default_rng(1)
    order = rng.permutation(FEATURES + 3)
    # The true axes, some negated, among three others; latents fire by chance.
    atoms = np.concatenate([truth * rng.choice([-1, 1], FEATURES), rng.normal(size=(DIM, 3))], axis=1)[:, order]
    dense = np.where(rng.random((6000, FEATURES + 3)) < 0.2, rng.normal(size=(6000, FEATURES + 3)), 0)
    counting = GroundTruth(data, atoms)
    every = torch.arange(FEATURES + 3, dtype=torch.int32)
    for start in range(0, 6000, 1100):
        values = torch.from_numpy(dense[start : start + 1100])
        counting.add(start, torch.zeros(len(values), DIM), Codes(every.expand(len(values), -1), values))
    source = GeneratedSource.model_validate({**data.attributes["recipe"], "out": made})
    active = np.concatenate([draw(source, truth, shard)[1] for shard in data.shards()]) != 0
    scores = []
    for feature in range(FEATURES):
        fired = dense[:, list(order).index(feature)] != 0
        scores.append(2 * (fired & active[:, feature]).sum() / (fired.sum() + active[:, feature].sum()))
    found = counting.numbers()
    assert found["truth_support_f1"] == pytest.approx(np.mean(scores))
    assert found["truth_recovered"] == found["truth_mean_cosine"] == pytest.approx(1)


def test_fewer_latents_than_features_are_not_paired(made):
    data = open_dataset(made)
    counting = GroundTruth(data, np.eye(DIM)[:, :4])
    counting.add(0, torch.zeros(1, DIM), Codes(torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1)))
    assert set(counting.numbers()) == {"truth_recovered", "truth_atoms_per_direction", "truth_mean_max"}


def test_interpret_states_what_was_recovered(made, tmp_path):
    pytest.importorskip("scipy")
    store = str(tmp_path / "store")
    learn(LearnJob.parse({
        "data": made, "store": store, "model": "abstopk", "atoms": 3 * FEATURES, "passes": 30, "batch_rows": 128,
        "settings": {"k": 2, "learning_rate": 5e-3}, "name": "features",
    }))  # fmt: skip
    out = tmp_path / "report.html"
    told: list[Progress] = []
    result = interpret(InterpretJob(data=made, dictionary="features", store=store, out=str(out), atoms=2), told.append)
    assert told[0].message == "ground truth: compares 36 latents with the features that made the data"
    assert known(open_dataset(made))
    assert result.metrics["truth_recovered"] > 0.8 and result.metrics["truth_support_f1"] > 0.5
    assert "truth_support_f1" in out.read_text()


def test_features_that_never_occur_do_not_count(made):
    pytest.importorskip("scipy")
    data = open_dataset(made)
    truth = data.side("truth")
    assert truth is not None
    active = draw(GeneratedSource.model_validate({**data.attributes["recipe"], "out": made}), truth, data.shards()[0])[
        1
    ]
    few = torch.from_numpy(active[:3])
    counting = GroundTruth(data, truth)
    every = torch.arange(FEATURES, dtype=torch.int32).expand(3, -1)
    counting.add(0, torch.zeros(3, DIM), Codes(every, few))
    assert not bool((few != 0).any(0).all())
    assert counting.numbers()["truth_support_f1"] == 1
