"""Coders by name: one battery for all of them."""

import pytest
import torch
from sparsefleet.models import Batch, ModelError
from sparsefleet.models.pursuit import CODERS, Given, make_coder


@pytest.mark.parametrize("name", CODERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_coder_encodes_under_a_given_dictionary(name, dtype):
    rng = torch.Generator().manual_seed(0)
    model = Given(atoms=20, coder=make_coder(name, {"nonzeros": 4}), dtype=dtype)
    params = {"W": torch.randn(12, 20, generator=rng).to(model.torch_dtype)}
    x = torch.randn(50, 12, generator=rng).to(model.torch_dtype)
    codes = model.encode(model.prepare(params), Batch(x))
    assert codes.indices.shape == codes.values.shape == (50, model.coder.width(12, 20))
    assert codes.indices.dtype == torch.int32 and codes.values.dtype == model.torch_dtype
    again = model.encode(params, Batch(x))
    torch.testing.assert_close(codes.dense(20), again.dense(20), atol=1e-4, rtol=0)
    # A row's code, or that of a group, does not depend on the rows beside it.
    some = slice(model.coder.together, 2 * model.coder.together)
    one = model.encode(model.prepare(params), Batch(x[some]))
    torch.testing.assert_close(one.dense(20), codes.dense(20)[some], atol=1e-4, rtol=0)
    assert model.encode(params, Batch(x[:0])).indices.shape == (0, model.coder.width(12, 20))
    zero = model.encode(params, Batch(x[:1] * 0))
    assert (zero.indices == -1).all() and zero.indices.shape[1] == codes.indices.shape[1]
    assert model.memory(50, 12) > 0


def test_thresholding_keeps_what_other_greedy_coders_cannot():
    assert make_coder("threshold", {"nonzeros": 15}).width(12, 20) == 15
    assert make_coder("omp", {"nonzeros": 15}).width(12, 20) == 12


def test_what_is_said_of_the_atoms():
    params = {"W": torch.eye(4)}
    omp, lasso = (Given(atoms=4, coder=make_coder(name, {})) for name in ("omp", "lasso"))
    assert Given(atoms=4, coder=make_coder("omp", {"nonzeros": 4})).note(params) == "atoms of length 1"
    params["W"][:, 0] *= 3
    assert "1 to 3, normalised inside" in omp.note(params)
    assert "used as they are" in lasso.note(params)
    params["W"][:, 1] = 0
    assert "1 are zero" in omp.note(params)
    assert omp.note(params).endswith("; nonzeros=10 is more than 4 atoms of 4 dimensions allow: 4 are used")


def test_an_error_relative_to_the_signal():
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)).double()
    d = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).double()).Q
    found = make_coder("omp", {"relative_error": 0.2, "nonzeros": 8})(x, d)
    assert (found.error <= 0.2 * x.square().sum(1)).all() and found.nonzeros.min() < 8


def test_a_given_dictionary_is_not_learned():
    with pytest.raises(ModelError, match="only encodes"):
        Given(atoms=4, coder=make_coder("omp", {})).schedule()


BAD = {
    "unknown coder": ("opm", {}, "did you mean 'omp'"),
    "a coder like no other": ("zzz", {}, r"unknown coder 'zzz'\. Choose one of"),
    "unknown setting": ("omp", {"nonzero": 3}, "did you mean 'nonzeros'"),
    "a word for a number": ("omp", {"nonzeros": "many"}, "nonzeros='many'"),
    "no non-zeros": ("omp", {"nonzeros": 0}, "nonzeros=0"),
    "unknown rule": ("omp", {"select": "best"}, "select='best'"),
    "two errors": ("omp", {"error": 1.0, "relative_error": 0.1}, "choose one"),
    "negative error": ("nnomp", {"error": -1.0}, "error=-1"),
    "no group": ("gomp", {"group": 0}, "group=0"),
    "no rows together": ("somp", {"group": 0}, "group=0"),
    "unknown norm": ("somp", {"norm": "l3"}, "norm='l3'"),
    "no threshold": ("stomp", {"strictness": 0.0}, "strictness=0"),
    "unknown step": ("iht", {"step": "long"}, "step='long'"),
    "no iterations": ("iht", {"iterations": 0}, "iterations=0"),
    "no progress to stop at": ("iht", {"tolerance": 0.0}, "tolerance=0"),
    "no penalty": ("lasso", {"penalty": 0.0}, "penalty=0"),
    "no tolerance": ("lasso", {"tolerance": 0.0}, "tolerance=0"),
    "negative ridge": ("elasticnet", {"ridge": -1.0}, "ridge=-1"),
    "negative soft threshold": ("threshold", {"penalty": -1.0}, "penalty=-1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_named(name):
    coder, settings, message = BAD[name]
    with pytest.raises(ModelError, match=message):
        make_coder(coder, settings)
