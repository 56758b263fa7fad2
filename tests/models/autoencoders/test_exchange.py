"""Layouts of other libraries: both directions by hand, and beside what the libraries themselves saved."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sparsefleet.models import Batch, ModelError, Probe, make_model
from sparsefleet.models.autoencoders.exchange import FORMATS, from_saelens, from_sparsify, to_saelens, to_sparsify
from sparsefleet.models.autoencoders.names import TRAINING

from .test_family import DIM, data, make, moved

SAELENS = ["topk", "abstopk", "gsae", "relu", "gated", "jumprelu", "batchtopk", "matryoshka"]
SPARSIFY = ["topk", "groupmax", "gsae"]
FOLDERS = sorted(f for f in (Path(__file__).parent / "foreign").iterdir() if f.is_dir())


def learned(name: str, dtype: str = "float32", **more):
    """A model with parameters off their start, and rows, scaled by another number than 1."""
    model = make(name, dtype=dtype, **more)
    raw = data(model).to(model.torch_dtype) * 3
    params = moved(model, raw.double())
    params = {n: p.to(model.torch_dtype) if p.is_floating_point() and p.ndim else p for n, p in params.items()}
    params["W_dec"] = torch.nn.functional.normalize(params["W_dec"], dim=1)
    if name in ("batchtopk", "matryoshka"):
        params["threshold"] = torch.tensor(0.8).double()
    assert float(params["scale"]) != 1
    return model, params, raw[:, :DIM]


def assert_same_codes(a, b, atoms: int) -> None:
    torch.testing.assert_close(a.dense(atoms), b.dense(atoms), rtol=1e-5, atol=1e-5)
    assert torch.equal(a.dense(atoms) != 0, b.dense(atoms) != 0)


@pytest.mark.parametrize(("kind", "name"), [("saelens", n) for n in SAELENS] + [("sparsify", n) for n in SPARSIFY])
def test_there_and_back_gives_the_same_codes_and_rows(kind, name):
    model, params, x = learned(name, "float64")
    _, out, back = FORMATS[kind]
    config, tensors = out(model, params)
    assert json.loads(json.dumps(config)) == config
    found = back(config, tensors)
    again = make_model(found.model, {"atoms": found.atoms, **found.settings})
    theirs, ours = again.encode(found.params, Batch(x)), model.encode(params, Batch(x))
    assert_same_codes(theirs, ours, model.atoms)
    torch.testing.assert_close(again.reconstruct(found.params, theirs), model.reconstruct(params, ours))
    own = again.init(_probe(x), torch.Generator())
    needed = {n: p.shape for n, p in own.items() if not n.startswith(TRAINING)}
    assert {n: p.shape for n, p in found.params.items()} == needed


@pytest.mark.parametrize(("kind", "name"), [("saelens", "relu"), ("saelens", "jumprelu"), ("sparsify", "topk")])
def test_transcoders_go_there_and_back(kind, name):
    model, params, x = learned(name, "float64", target="outputs" if kind == "saelens" else "flipped")
    params["target_scale"] = params["target_scale"] * 1.7
    _, out, back = FORMATS[kind]
    found = back(*out(model, params))
    again = make_model(found.model, {"atoms": found.atoms, **found.settings})
    theirs, ours = again.encode(found.params, Batch(x)), model.encode(params, Batch(x))
    assert_same_codes(theirs, ours, model.atoms)
    torch.testing.assert_close(again.reconstruct(found.params, theirs), model.reconstruct(params, ours))


@pytest.mark.parametrize("name", ["jumprelu", "batchtopk"])
def test_thresholds_are_scaled_with_the_data(name):
    model, params, _ = learned(name)
    _, tensors = to_saelens(model, params)
    wanted = (params["threshold"] / params["scale"]).expand(model.atoms).to(torch.float32)
    if name == "batchtopk":  # an entry equal to the threshold is active here and would not be there
        wanted = torch.nextafter(wanted, torch.zeros(()))
    torch.testing.assert_close(tensors["threshold"], wanted, rtol=0, atol=0)


def test_an_entry_equal_to_the_threshold_of_a_batch_stays_active():
    model, params, _ = learned("batchtopk")
    params["scale"] = torch.ones(())
    _, tensors = to_saelens(model, params)
    threshold = params["threshold"].float()
    assert bool((threshold > tensors["threshold"]).all())
    _, values = model.select(params, threshold.repeat(1, model.atoms), torch.zeros(1, DIM))
    assert int(values.count_nonzero()) == model.atoms


def test_selection_by_decoder_norm_is_folded_in():
    model, params, x = learned("topk", "float64")
    config, tensors = to_saelens(model, params)
    norms = 0.5 + torch.rand(model.atoms, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tensors["W_dec"] = tensors["W_dec"] * norms
    found = from_saelens({**config, "rescale_acts_by_decoder_norm": True}, tensors)
    again = make_model(found.model, {"atoms": found.atoms, **found.settings})
    u = ((x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]) * norms[:, 0]
    kept = u.topk(model.k, dim=1)
    wanted = torch.zeros_like(u).scatter(1, kept.indices, kept.values.relu())
    torch.testing.assert_close(again.encode(found.params, Batch(x)).dense(model.atoms), wanted)


@pytest.mark.parametrize("name", ["topk", "gated"])
def test_an_encoder_that_does_not_subtract_the_bias_gets_it_into_its_own(name):
    model, params, x = learned(name, "float64")
    config, tensors = to_saelens(model, params)
    for key in ("b_enc", "b_gate"):
        if key in tensors:
            tensors[key] = tensors[key] - tensors["b_dec"] @ tensors["W_enc"]
    if name == "gated":
        tensors["b_mag"] = tensors["b_mag"] - tensors["r_mag"].exp() * (tensors["b_dec"] @ tensors["W_enc"])
    found = from_saelens({**config, "apply_b_dec_to_input": False}, tensors)
    again = make_model(found.model, {"atoms": found.atoms, **found.settings})
    assert_same_codes(again.encode(found.params, Batch(x)), model.encode(params, Batch(x)), model.atoms)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "temporal"}, "architecture 'temporal' cannot be imported: choose one of standard, gated"),
        ({"normalize_activations": "layer_norm"}, "only autoencoders whose normalization is folded in"),
        ({"k": None}, "k=None in the configuration"),
        ({"k": 1000}, "k=1000 active latents of 64"),
        ({"k": True}, "k=True in the configuration"),
        ({"architecture": "standard", "activation_fn_str": "topk"}, "activation_fn_str is a setting of SAELens before"),
        ({"finetuning_scaling_factor": True}, "load and save the folder with SAELens 6 first"),
        ({"architecture": "transcoder"}, "apply_b_dec_to_input=true cannot be imported for a transcoder"),
        ({"architecture": "jumprelu_transcoder"}, "apply_b_dec_to_input=true"),
    ],
)
def test_foreign_settings_are_refused(change, message):
    model, params, _ = learned("topk")
    config, tensors = to_saelens(model, params)
    with pytest.raises(ModelError, match=message):
        from_saelens({**config, **change}, tensors)


DAMAGES = {
    "missing": ("W_dec", lambda t: None, "'W_dec' is missing"),
    "short": ("bias", lambda t: torch.zeros(3), r"has shape \[3\], not \[64\]"),
    "a number": ("bias", lambda t: torch.tensor(1.0), r"has shape \[\], not \[64\]"),
    "a row for a matrix": ("W_enc", lambda t: t[0], r"has shape \[\d+\], not \["),
    "three axes": ("W_enc", lambda t: t[None], r"has shape \[1, \d+, \d+\], not \["),
    "a row for a decoder": ("W_dec", lambda t: t[0], r"W_dec' has shape \[12\], not \[64, 12\]"),
    "another width": ("W_dec", lambda t: t[:, :9], r"W_dec' has shape \[64, 9\], not \[64, 12\]"),
    "another b_dec": ("b_dec", lambda t: t[:9], r"b_dec' has shape \[9\], not \[12\]"),
    "no latents": ("W_enc", lambda t: t[:0], r"has shape \[0, \d+\], not \["),
    "nan": ("bias", lambda t: t * float("nan"), "holds NaN or infinite"),
    "complex": ("W_dec", lambda t: t + 1j, "W_dec' holds torch.complex64, not real numbers"),
    "beyond float32": ("b_dec", lambda t: t.double() + 1e300, "or some beyond torch.float32"),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_tensors_that_do_not_fit_are_refused(kind, damage):
    model, params, _ = learned("topk")
    _, write, read = FORMATS[kind]
    config, tensors = write(model, params)
    what, change, message = DAMAGES[damage]
    names = {"bias": "encoder.bias", "W_enc": "encoder.weight"} if kind == "sparsify" else {"bias": "b_enc"}
    name = names.get(what, what)
    changed = change(tensors.pop(name))
    with pytest.raises(ModelError, match=message):
        read(config, tensors if changed is None else {**tensors, name: changed})


def test_what_overflows_when_it_is_folded_in_is_refused():
    model, params, _ = learned("gated")
    config, tensors = to_saelens(model, params)
    tensors["r_mag"] = tensors["r_mag"] + 1000
    with pytest.raises(ModelError, match=r"b_mag becomes infinite in torch\.float32"):
        from_saelens({**config, "apply_b_dec_to_input": False}, tensors)


@pytest.mark.parametrize("name", SAELENS)
def test_a_model_of_ones_own_is_not_taken_for_its_parent(name):
    model, params, _ = learned(name)
    own = type("Own", (type(model),), {})
    mine = own(**{field.name: getattr(model, field.name) for field in fields(model)})
    with pytest.raises(ModelError, match="SAELens has no Own"):
        to_saelens(mine, params)


@pytest.mark.parametrize("save", [to_saelens, to_sparsify])
def test_codes_chosen_by_gradient_do_not_become_others_unsaid(save):
    model, params, _ = learned("gsae", encode_by="gradient")
    with pytest.raises(ModelError, match="encode_by=gradient: other libraries choose latents without gradients"):
        save(model, params)


def test_what_the_formats_lack_is_said():
    for name, write in (("groupmax", to_saelens), ("batchabstopk", to_saelens), ("relu", to_sparsify)):
        model, params, _ = learned(name)
        with pytest.raises(ModelError, match="has no"):
            write(model, params)
    model, params, _ = learned("topk")
    with pytest.raises(ModelError, match="outputs as long as inputs, not 9 for 12"):
        to_sparsify(*learned("topk", target="outputs")[:2])
    with pytest.raises(ModelError, match="skip_connection"):
        from_sparsify({**to_sparsify(model, params)[0], "skip_connection": True}, {})
    with pytest.raises(ModelError, match="signed=true"):
        from_sparsify({**to_sparsify(model, params)[0], "signed": True}, {})


# -- what the libraries saved (benchmarks/peers/exchange.py) --------------------------------------------------------


def stored(folder):
    """(cfg.json, tensors, rows) of a folder."""
    tensors = load_file(folder / FORMATS[folder.name.partition("-")[0]][0])
    return json.loads((folder / "cfg.json").read_text()), tensors, np.load(folder / "rows.npz")


def imported(folder):
    """(model, parameters) of a folder, and what it holds."""
    config, tensors, rows = stored(folder)
    found = FORMATS[folder.name.partition("-")[0]][2](config, tensors)
    return make_model(found.model, {"atoms": found.atoms, **found.settings}), found.params, config, tensors, rows


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_what_a_library_saved_gives_the_codes_and_rows_that_it_gave(folder):
    model, params, _, _, rows = imported(folder)
    codes = model.encode(params, Batch(torch.from_numpy(rows["x"])))
    theirs = torch.from_numpy(rows["codes"])
    torch.testing.assert_close(codes.dense(model.atoms), theirs, rtol=1e-4, atol=1e-5)
    assert theirs.count_nonzero() >= 2 * len(theirs)
    again = model.reconstruct(params, codes)
    torch.testing.assert_close(again, torch.from_numpy(rows["reconstruction"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("folder", [f for f in FOLDERS if (f / "sent.json").exists()], ids=lambda f: f.name)
def test_what_is_exported_is_what_the_library_loaded(folder):
    model, params, config, tensors, _ = imported(folder)
    ours, our_tensors = FORMATS[folder.name.partition("-")[0]][1](model, params)
    sent = json.loads((folder / "sent.json").read_text())
    ours.pop("metadata", None), sent.pop("metadata", None)
    assert ours == sent
    assert {key: config[key] for key in sent} == sent
    assert our_tensors.keys() == tensors.keys()
    for name, value in our_tensors.items():
        torch.testing.assert_close(value, tensors[name], rtol=0, atol=0)


def _probe(x):
    return Probe(len(x), x.double().mean(0), x.double().var(0), x.double())
