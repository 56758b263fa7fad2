"""Posterior outputs of every model against enumeration of all states, and what adaptive refinement changes."""

import numpy as np
import pytest
import torch
from sparsefleet.models import Batch, ModelError, make_model
from sparsefleet.models.truncated.states import state_table

from . import posteriors

ATOMS, CASES, ROWS, each = posteriors.ATOMS, posteriors.CASES, posteriors.ROWS, posteriors.each
dense, infer, number_of = posteriors.dense, posteriors.infer, posteriors.number_of
enumerated, problem = posteriors.enumerated, posteriors.problem


def all_in_sets(case):
    """Settings with which the sets hold all states, found by evolution."""
    count = (1 + case.model().levels) ** ATOMS
    return {"states": "evolutionary", "evolution": {"size": count, "encode_steps": 5}}


@each
@pytest.mark.parametrize("kind", ["preselected", "all", "evolutionary"])
def test_every_output_equals_enumeration(case, kind):
    y, params = problem(case)
    states, exact, coefficients = enumerated(case, y, params)
    model = case.model(**(all_in_sets(case) if kind == "evolutionary" else {"states": kind}))
    found = infer(model, params, y, top_states=6)
    np.testing.assert_allclose(found["log_likelihood"], exact["log_likelihood"], rtol=1e-10)
    np.testing.assert_allclose(found["entropy"], exact["entropy"], atol=1e-9)
    np.testing.assert_allclose(found["reconstruction"], exact["reconstruction"], atol=1e-9)
    np.testing.assert_allclose(dense(found["indices"], found["values"]), exact["mean"], atol=1e-4)
    rows = np.arange(ROWS)
    for k in range(6):
        # Of states with the same probability (atoms that no other state shows) any may come first.
        which = number_of(case, states, found["top_indices"][:, k], found["top_values"][:, k])
        best = exact["probability"][rows, exact["order"][:, k]]
        np.testing.assert_allclose(exact["probability"][rows, which], best, atol=1e-9)
        np.testing.assert_allclose(found["top_probabilities"][:, k], best, atol=1e-9)
        listed = dense(found["top_indices"][:, k], found["top_values"][:, k])
        np.testing.assert_allclose(listed, coefficients[rows, which] * (states[which] != 0), atol=1e-9)
    np.testing.assert_array_equal(found["map_indices"], found["top_indices"][:, 0])
    np.testing.assert_array_equal(found["map_values"], found["top_values"][:, 0])


@each
@pytest.mark.parametrize("kind", ["preselected", "all"])
def test_marginals_cover_every_value(case, kind):
    y, params = problem(case)
    states, exact, _ = enumerated(case, y, params)
    found = infer(case.model(states=kind), params, y)
    order = np.argsort(found["marginal_indices"], 1)
    marginals = found["marginals"].reshape(ROWS, ATOMS, -1)
    support = {"tsc": (-1, 1), "dsc": (-1, 0.5, 2)}.get(case.name)
    assert marginals.shape[2] == (len(support) if support else 1)
    for number, value in enumerate(support or ("active",)):
        truth = exact["probability"] @ (states != 0 if value == "active" else states == value)
        np.testing.assert_allclose(np.take_along_axis(marginals[..., number], order, 1), truth, atol=1e-9)


@each
def test_probabilities_of_the_listed_states_are_normalised(case):
    y, params = problem(case)
    model = case.model(h_prime=3, gamma=2)
    states = 1 + model.levels * ATOMS + model.multi_states
    found = infer(model, params, y, top_states=states + 3)
    assert found["top_probabilities"].shape == (ROWS, states + 3)
    np.testing.assert_allclose(found["top_probabilities"].sum(1), 1, rtol=1e-9)
    assert (found["top_probabilities"][:, 0] < 1).all()
    assert not found["top_probabilities"][:, states:].any()
    assert (found["top_indices"][:, states:] == -1).all()
    assert (np.diff(found["top_probabilities"], axis=1) <= 0).all()


@each
def test_states_are_listed_once_each(case):
    y, params = problem(case)
    model = case.model(h_prime=3, gamma=3)
    states = 1 + model.levels * ATOMS + model.multi_states
    found = infer(model, params, y, top_states=states)
    # A spike-and-slab state is its atoms; elsewhere the values are part of it.
    values = found["top_values"] if case.name != "gsc" else np.ones_like(found["top_values"])
    for row in dense(found["top_indices"], values):
        assert len({tuple(state) for state in row}) == states


@each
def test_sets_of_new_rows_come_near_all_states(case):
    y, params = problem(case)
    _, exact, _ = enumerated(case, y, params)
    some = {"h_prime": 2, "gamma": 1, "states": "evolutionary"}
    sets = {"size": 6, "parents": 4, "children": 2, "encode_steps": 20}
    model = case.model(**some, evolution=sets)
    found = infer(model, params, y)["log_likelihood"]
    least = infer(case.model(**some, evolution={**sets, "encode_steps": 0}), params, y)["log_likelihood"]
    assert (least - 1e-12 <= found).all() and (found <= exact["log_likelihood"] + 1e-9).all()
    few = 2 ** (-2.0) if model.levels > 1 else 2**-4.0
    assert (exact["log_likelihood"] - found).mean() < few + (exact["log_likelihood"] - least).mean() / 2


@each
def test_sets_say_the_same_of_a_row_wherever_it_lies(case):
    y, params = problem(case)
    model = case.model(states="evolutionary", h_prime=2, gamma=2, evolution={"size": 5, "most_active": 3})
    whole, part = infer(model, params, y, top_states=7), infer(model, params, y[5:], top_states=7)
    for name in whole:
        np.testing.assert_allclose(whole[name][5:], part[name], rtol=1e-9, atol=1e-12)
    assert whole["top_indices"].shape == (ROWS, 7, 3) and not whole["top_probabilities"][:, 5:].any()
    codes = model.encode(params, Batch(y))
    np.testing.assert_array_equal(codes.indices, whole["indices"])


def test_sets_do_not_grow():
    case = CASES[0]
    y, params = problem(case)
    with pytest.raises(ModelError, match="adaptive=1 belongs to preselected states"):
        infer(case.model(states="all"), params, y, adaptive=1)


@each
def test_encode_and_infer_give_the_same_codes(case):
    y, params = problem(case)
    model = case.model(h_prime=3, gamma=2)
    codes, found = model.encode(params, Batch(y)), infer(model, params, y)
    np.testing.assert_array_equal(found["indices"], codes.indices.numpy())
    np.testing.assert_allclose(found["values"], codes.values.numpy(), rtol=1e-12)


@each
def test_adaptive_inference_redoes_only_what_needs_it_and_leaves_nothing_behind(case):
    y, params = problem(case, rows=40)
    small = case.model(h_prime=2, gamma=1)
    plain = infer(small, params, y)
    again = infer(small, params, y, adaptive=2)
    hit = (plain["map_indices"] >= 0).sum(1) == 1
    assert hit.any()
    assert not hit.all()
    assert (again["gamma"][~hit] == 1).all()
    assert (again["gamma"][hit] >= 2).all()
    assert (again["h_prime"] == again["gamma"] + 1).all()
    np.testing.assert_array_equal(again["log_likelihood"][~hit], plain["log_likelihood"][~hit])
    for gamma in (2, 3):
        rows = again["gamma"] == gamma
        larger = infer(case.model(h_prime=gamma + 1, gamma=gamma), params, y[torch.from_numpy(rows)])
        np.testing.assert_allclose(again["log_likelihood"][rows], larger["log_likelihood"], rtol=1e-12)
        np.testing.assert_allclose(
            dense(again["map_indices"][rows], again["map_values"][rows]),
            dense(larger["map_indices"], larger["map_values"]),
            atol=1e-9,
        )
    # The next call begins with the model's own states.
    after = infer(small, params, y)
    assert all(np.array_equal(plain[n], after[n]) for n in plain)


@each
def test_adaptive_inference_reaches_the_exact_state(case):
    y, params = problem(case, rows=40)
    states, exact, _ = enumerated(case, y, params)
    found = infer(case.model(h_prime=3, gamma=1), params, y, adaptive=ATOMS)
    rows = np.flatnonzero(found["gamma"] == ATOMS)
    which = number_of(case, states, found["map_indices"], found["map_values"])[rows]
    np.testing.assert_allclose(exact["probability"][rows, which], exact["probability"].max(1)[rows], rtol=1e-9)
    assert (found["gamma"] <= ATOMS).all()
    assert (found["h_prime"] <= ATOMS).all()


@each
def test_no_rows_and_float32(case):
    y, params = problem(case)
    model = case.model(dtype="float32", h_prime=3, gamma=2)
    some, none = infer(model, params, y.float()), infer(model, params, y[:0].float(), adaptive=1)
    exact = infer(case.model(h_prime=3, gamma=2), params, y)
    assert {n: v.shape[1:] for n, v in infer(model, params, y.float(), adaptive=1).items()} == {
        n: v.shape[1:] for n, v in none.items()
    }
    for name, value in some.items():
        kind = "int32" if "indices" in name else "float64" if name in ("log_likelihood", "entropy") else "float32"
        assert value.dtype == kind, name
        if kind != "int32":
            assert np.isfinite(value).all()
    np.testing.assert_allclose(some["log_likelihood"], exact["log_likelihood"], rtol=1e-4)
    np.testing.assert_allclose(some["reconstruction"], exact["reconstruction"], atol=1e-3)


def test_state_tables_are_values_that_no_call_can_change():
    before = state_table(4, 2, torch.float64, torch.device("cpu")).held.clone()
    y, params = problem(CASES[0])
    infer(CASES[0].model(h_prime=4, gamma=2), params, y, adaptive=2)
    assert torch.equal(state_table(4, 2, torch.float64, torch.device("cpu")).held, before)


def test_growing_beyond_the_largest_table_is_refused():
    model = make_model("bsc", {"atoms": 60, "h_prime": 16, "gamma": 5})
    with pytest.raises(ModelError, match="states per point"):
        infer(model, {}, torch.zeros(1, 3), adaptive=9)
