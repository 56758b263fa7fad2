"""Losses with activations replaced, for what reads one site and predicts another one."""

import pytest
import torch
from sparsefleet.workers import HarvestJob, JobError
from sparsefleet.workers.activations import hosts
from sparsefleet.workers.activations.harvesting import read
from sparsefleet.workers.activations.splicing import losses, recovered
from sparsefleet.workers.activations.taps import Tap

CPU = torch.device("cpu")
SOURCE, TARGET = Tap("model.layers.1.mlp.gate_proj", "input"), Tap("model.layers.1.mlp.down_proj")


@pytest.fixture(scope="module")
def network(llama):
    return hosts.load_network(llama, CPU).double()


@pytest.fixture(scope="module")
def windows(llama, texts):
    values = {"model": str(llama), "texts": [str(texts)], "out": "x", "context": 16, "skip": 1}
    return read(HarvestJob.parse(values)).windows


def test_a_perfect_transcoder_changes_nothing_and_one_of_zeros_does_what_zeros_do(network, windows):
    mlp = network.model.layers[1].mlp
    # Modules would call the hooks again.
    weights = {name: p.detach().clone() for name, p in mlp.named_parameters()}
    rows = []

    def perfect(x):
        rows.append(len(x))
        gate, up = (x @ weights[f"{n}_proj.weight"].T for n in ("gate", "up"))
        return (torch.nn.functional.silu(gate) * up) @ weights["down_proj.weight"].T

    mean = torch.full((16,), 0.1, dtype=torch.float64)
    changes = {
        "reconstruction": lambda x: mean.new_zeros(len(x), 16),
        "mean": lambda x: mean.expand(len(x), -1),
    }
    found = losses(network, TARGET, windows, changes, CPU, source=SOURCE, batch=3)
    same = losses(network, TARGET, windows, {"reconstruction": perfect}, CPU, source=SOURCE, batch=5)
    assert same["reconstruction"] == pytest.approx(same["clean"], rel=1e-6)
    assert sum(rows) == windows.rows, "every row is replaced once, and no other token"
    zeros = losses(network, TARGET, windows, {"zero": lambda x: torch.zeros_like(x)}, CPU)
    assert found["reconstruction"] == pytest.approx(zeros["zero"], rel=1e-6)
    assert zeros["zero"] != pytest.approx(found["clean"], abs=1e-5) != pytest.approx(found["mean"], abs=1e-5)
    assert recovered({**same, "zero": zeros["zero"]}, without="zero") == pytest.approx(1)


def test_widths_may_differ(network, windows):
    weight = network.model.layers[1].mlp.down_proj.weight.detach().clone()
    tap = Tap(TARGET.module, "input")
    found = losses(network, TARGET, windows, {"same": lambda x: x @ weight.T}, CPU, source=tap)
    assert found["same"] == pytest.approx(found["clean"], rel=1e-6)


def test_what_comes_later_cannot_be_read(network, windows):
    with pytest.raises(JobError, match="nothing passes there before"):
        losses(network, TARGET, windows, {"zero": torch.zeros_like}, CPU, source=Tap("model.layers.2"))
