"""The real models, where `make inputs` has brought them in: the loader's reference numbers, and a small harvest."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sparsefleet.storage import NotFound, open_dataset
from sparsefleet.storage.inputs import find_input
from sparsefleet.workers import HarvestJob, run
from sparsefleet.workers.activations import hosts

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)

    def find(name: str) -> Path:
        try:
            return find_input(name)
        except NotFound as err:
            pytest.skip(str(err))

    return find


@pytest.mark.e2e
def test_smollm2_knows_who_got_the_drink(real):
    path = real("smollm2")
    tokenizer, network = hosts.load_tokenizer(path), hosts.load_network(path, CPU)
    prompt = "When Mary and John went to the store, John gave a drink to"
    with torch.no_grad():
        found = network(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1].log_softmax(0)
    (mary,), (john,) = tokenizer(" Mary")["input_ids"], tokenizer(" John")["input_ids"]
    # Rows of queries and keys are stored interleaved; a loader that forgets this gives other numbers.
    assert found[mary] == pytest.approx(-0.08, abs=0.01) and found[john] == pytest.approx(-6.2, abs=0.05)
    names = ("Mary", "John", "Tom", "James", "Anna", "Kate", "Sarah", "David", "Mark", "Alice", "Peter", "Emma")
    assert all(len(tokenizer(f" {name}")["input_ids"]) == 1 for name in names)
    assert network.config.num_hidden_layers == 30 and network.config.hidden_size == 576


@pytest.mark.e2e
def test_minilm_is_harvested(real, tmp_path):
    real("minilm")
    (tmp_path / "a.txt").write_text("The whale surfaced beside the ship. " * 20)
    values = {"model": "input:minilm", "texts": [str(tmp_path / "a.txt")], "out": str(tmp_path / "a.zarr")}
    *_, last = run("harvest", HarvestJob.parse({**values, "layers": "3", "site": "residual,neurons", "context": 64}))
    data, neurons = map(open_dataset, last.result["outs"])
    assert data.dim == 384 and neurons.dim == 1536 and data.rows == neurons.rows == 140
    assert np.abs(data.read(0, data.rows)).mean() > 0.1
