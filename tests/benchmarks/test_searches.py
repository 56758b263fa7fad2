"""How `semi_nmf` and `neurons` find as much of a direction as moves the predictions by a given KL: upwards from 0, also
where far less than 1 does so, and no direction is left out where nothing does."""

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "benchmarks"
GAIN = math.sqrt(1 - math.exp(-1)) / 2
"""Of one of two equally probable classes at a KL of 0.5 nats: p (1 - p) = 1 / 4e."""


@pytest.fixture
def semi_nmf(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("sklearn", reason="needs the extra science")
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("semi_nmf")


@pytest.fixture
def neurons(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("neurons")


def gain(semi_nmf: ModuleType, directions: list[list[float]], scale: float, bias: float = 0.0) -> float:
    """Of the first class of two, whose logit is `scale` times the first hidden entry."""
    last = torch.tensor([[scale, 0.0], [0.0, 0.0]], dtype=torch.float64)
    given = torch.tensor(directions, dtype=torch.float64)
    h = torch.zeros(1, 2, dtype=torch.float64)
    return semi_nmf.steered(given, torch.zeros(len(given)).long(), h, last, torch.tensor([bias, 0.0]).double())


@pytest.mark.parametrize("scale", [1e-5, 1e-2, 1.0, 2.0, 4.0, 1e2, 1e6])
def test_semi_nmf_moves_as_far_whatever_the_scale(semi_nmf, scale):
    assert gain(semi_nmf, [[1.0, 0.0]], scale) == pytest.approx(GAIN, rel=1e-4)
    assert gain(semi_nmf, [[-3.0, 0.0]], scale) == pytest.approx(-GAIN, rel=1e-4)


@pytest.mark.parametrize("bias", [-2.0, -1.0, 1.0, 5.0])
def test_semi_nmf_finds_where_the_kl_of_an_uneven_prediction_is_met(semi_nmf, bias):
    before = 1 / (1 + math.exp(-bias))
    after = before + gain(semi_nmf, [[-1.0, 0.0]], 0.3, bias)
    moved = before * math.log(before / after) + (1 - before) * math.log((1 - before) / (1 - after))
    assert moved == pytest.approx(0.5, rel=1e-4)


def test_a_direction_that_moves_nothing_counts_in_semi_nmf(semi_nmf):
    assert gain(semi_nmf, [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], 1.0) == pytest.approx(GAIN / 3, rel=1e-4)


def found(neurons: ModuleType, curves: list[Callable[[Tensor], Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Where `rises` ends for directions whose KL is a known function of α, and whose rise is α itself."""

    class Known(neurons.Steered):
        def __init__(self) -> None:
            self._length = 10.0

        def _at(self, unit: Tensor, alpha: Tensor, sets: list[list[int]]) -> tuple[Tensor, Tensor]:
            moved = [curves[int(one.argmax())](a) for one, a in zip(unit, alpha, strict=True)]
            return torch.stack(moved), alpha[:, None].expand(-1, len(sets)).clone()

    rise, alpha, moved = Known().rises(torch.eye(len(curves)), [[0], [1]])
    assert rise.shape == (len(curves), 2)
    assert torch.equal(rise, alpha[:, None].expand(-1, 2)), "α is not the one that was measured"
    return rise, alpha, moved


@pytest.mark.parametrize("power", [1, 2, 3])
def test_neurons_reaches_the_kl_whatever_the_scale(neurons, power):
    wanted = [1e-4, 1e-2, 0.3, 1.0, 7.0, 1e3]
    curves = [lambda a, at=at: neurons.KL * (a / at) ** power for at in wanted]
    _, alpha, moved = found(neurons, curves)
    assert float((moved / neurons.KL - 1).abs().max()) <= neurons.CLOSE
    assert alpha.tolist() == pytest.approx(wanted, rel=0.05)


def test_a_kl_out_of_reach_is_kept_and_seen_in_neurons(neurons):
    curves = [lambda a: 0.8 * neurons.KL * torch.tanh(a), torch.zeros_like, lambda a: neurons.KL * a**2]
    _, _, moved = found(neurons, curves)
    assert ((moved / neurons.KL - 1).abs() > neurons.CLOSE).tolist() == [True, True, False]
