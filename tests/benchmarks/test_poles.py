"""How `poles` finds the size of an edit and scores it."""

import importlib
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from sparsefleet.models import Batch, Probe, make_model

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def poles(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("poles")


def latents(poles, name: str, **settings):
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    model = make_model(name, {"atoms": 6, "k": 2, **settings})
    wide = x.double()
    params = model.init(Probe(len(x), wide.mean(0), wide.var(0), wide, (4,)), torch.Generator().manual_seed(1))
    capital = x[:, 0] > 0
    return poles.Latents.of(model, params, x, capital), x, capital


@pytest.mark.parametrize("unit", [1e-2, 1.0, 50.0])
def test_matched_finds_where_a_square_crosses(poles, unit):
    assert poles.matched(lambda c: 0.02 * c * c, 0.5, unit) == pytest.approx(5, rel=1e-4)


def test_matched_passes_a_valley_and_takes_the_rise(poles):
    # A latent that is active without an edit: holding it at 0 already moves something.
    assert poles.matched(lambda c: (c - 3) ** 2, 0.25, 1.0) == pytest.approx(3.5, rel=1e-4)
    assert poles.matched(lambda c: (c - 3) ** 2, 100.0, 1.0) == pytest.approx(13, rel=1e-4)


def test_matched_says_where_the_target_is_out_of_reach(poles):
    assert poles.matched(lambda c: 0.3 * math.tanh(c), 0.5, 1.0) is None
    assert poles.matched(lambda c: 1 + c, 0.5, 1.0) is None


def test_odds_are_those_of_all_tokens_of_a_pole(poles):
    p = torch.tensor([[0.1, 0.2, 0.6, 0.1]], dtype=torch.float64)
    found = poles.odds(p.log() + 7, torch.tensor([0, 1]), torch.tensor([2]))
    assert float(found) == pytest.approx(math.log(0.3 / 0.6))


def test_the_weaker_pole_counts(poles):
    assert poles.both(2.0, -0.5) == 0.5
    assert poles.both(0.25, -3.0) == 0.25
    assert poles.both(2.0, 0.5) == -0.5
    assert math.isnan(poles.both(math.nan, -1.0)) and math.isnan(poles.both(1.0, math.nan))


def test_prompts_hold_no_letter_and_are_followed_by_one(poles):
    found = poles.prompts(["ab 12345678c", "      == x = 1", " 12345678d", "\n" * 9 + "e"])
    assert found == ["12345678", "     == ", "\n" * 8]


@pytest.mark.parametrize("name", ["topk", "abstopk"])
def test_an_edit_moves_rows_along_one_atom_and_keeps_the_rest(poles, name):
    given, x, capital = latents(poles, name)
    codes = given.model.encode(given.params, Batch(x))
    z = torch.zeros(len(x), 6)
    for row in range(len(x)):
        for i, value in zip(codes.indices[row].tolist(), codes.values[row].tolist(), strict=True):
            if i >= 0:
                z[row, i] = value
    gaps = z[capital].double().mean(0) - z[~capital].double().mean(0)
    torch.testing.assert_close(given.gaps, gaps, rtol=1e-5, atol=1e-6)
    i = int(gaps.abs().argmax())
    atom = given.model.dictionary(given.params)[:, i]
    towards, away = given.single(i)
    for edit, sign in ((towards, 1), (away, -1)):
        held = 2.0 * sign * float(gaps[i].sign())
        torch.testing.assert_close(edit(2.0)(x), x + (held - z[:, i : i + 1]) * atom)


def test_a_pair_holds_one_latent_and_puts_out_the_other(poles):
    given, x, _ = latents(poles, "topk")
    z = poles.dense(given.model, given.params, x).float()
    i, j = int(given.gaps.argmax()), int(given.gaps.argmin())
    atoms = given.model.dictionary(given.params)
    plus, minus = given.pair()
    torch.testing.assert_close(plus(3.0)(x), x + (3 - z[:, i, None]) * atoms[:, i] - z[:, j, None] * atoms[:, j])
    torch.testing.assert_close(minus(3.0)(x), x - z[:, i, None] * atoms[:, i] + (3 - z[:, j, None]) * atoms[:, j])
