"""Layouts of other libraries: both directions by hand, and through the libraries where they are installed."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from sparsefleet.models import Batch, ModelError, make_model
from sparsefleet.models.autoencoders.exchange import FORMATS, from_saelens, from_sparsify, to_saelens, to_sparsify
from sparsefleet.models.autoencoders.names import TRAINING

from .test_family import DIM, data, make, moved

SAELENS = ["topk", "abstopk", "gsae", "relu", "gated", "jumprelu", "batchtopk", "matryoshka"]
SPARSIFY = ["topk", "groupmax", "gsae"]


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
    torch.testing.assert_close(tensors["threshold"], wanted)


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
    ],
)
def test_foreign_settings_are_refused(change, message):
    model, params, _ = learned("topk")
    config, tensors = to_saelens(model, params)
    with pytest.raises(ModelError, match=message):
        from_saelens({**config, **change}, tensors)


@pytest.mark.parametrize("damage", ["missing", "shape", "nan"])
def test_tensors_that_do_not_fit_are_refused(damage):
    model, params, _ = learned("topk")
    config, tensors = to_sparsify(model, params)
    if damage == "missing":
        del tensors["W_dec"]
    else:
        tensors["encoder.bias"] = torch.zeros(3) if damage == "shape" else tensors["encoder.bias"] * float("nan")
    with pytest.raises(ModelError, match=r"W_dec' is missing|b_enc has shape \[3\]|holds NaN"):
        from_sparsify(config, tensors)


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


# -- the libraries themselves ---------------------------------------------------------------------------------------


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@pytest.mark.skipif(not _installed("sae_lens"), reason="sae-lens is not installed")
@pytest.mark.parametrize("name", SAELENS)
def test_sae_lens_gives_the_same_codes_and_saves_what_we_load(tmp_path, name):
    from sae_lens import SAE
    from safetensors.torch import load_file, save_file

    model, params, x = learned(name)
    config, tensors = to_saelens(model, params)
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    theirs = SAE.load_from_disk(tmp_path)
    ours = model.encode(params, Batch(x))
    with torch.no_grad():
        z = theirs.encode(x)
        z = z.to_dense() if z.is_sparse else z
        torch.testing.assert_close(ours.dense(model.atoms), z, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.reconstruct(params, ours), theirs.decode(z), rtol=1e-4, atol=1e-4)
    theirs.save_model(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "cfg.json").read_text())
    found = from_saelens(saved, load_file(tmp_path / "again" / "sae_weights.safetensors"))
    again = make_model(found.model, {"atoms": found.atoms, **found.settings})
    torch.testing.assert_close(again.encode(found.params, Batch(x)).dense(model.atoms), z, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not _installed("sae_lens"), reason="sae-lens is not installed")
@pytest.mark.parametrize("name", ["relu", "jumprelu"])
def test_sae_lens_gives_the_same_codes_of_a_transcoder(tmp_path, name):
    from sae_lens import SAE
    from safetensors.torch import save_file

    model, params, x = learned(name, target="outputs")
    config, tensors = to_saelens(model, params)
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    theirs = SAE.load_from_disk(tmp_path)
    ours = model.encode(params, Batch(x))
    with torch.no_grad():
        z = theirs.encode(x)
        torch.testing.assert_close(ours.dense(model.atoms), z, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.reconstruct(params, ours), theirs.decode(z), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not _installed("sparsify"), reason="eai-sparsify is not installed")
@pytest.mark.parametrize(("name", "target"), [("topk", None), ("groupmax", None), ("topk", "flipped")])
def test_sparsify_gives_the_same_codes_and_saves_what_we_load(tmp_path, name, target):
    from safetensors.torch import load_file, save_file
    from sparsify import SparseCoder

    model, params, x = learned(name, target=target)
    config, tensors = to_sparsify(model, params)
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "sae.safetensors")
    theirs = SparseCoder.load_from_disk(tmp_path)
    ours = model.encode(params, Batch(x))
    with torch.no_grad():
        out = theirs.encode(x)
        z = torch.zeros(len(x), model.atoms).scatter(1, out.top_indices, out.top_acts)
        torch.testing.assert_close(ours.dense(model.atoms), z, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            model.reconstruct(params, ours), theirs.decode(out.top_acts, out.top_indices), rtol=1e-4, atol=1e-4
        )
    theirs.save_to_disk(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "cfg.json").read_text())
    found = from_sparsify(saved, load_file(tmp_path / "again" / "sae.safetensors"))
    again = make_model(found.model, {"atoms": found.atoms, **found.settings})
    torch.testing.assert_close(again.encode(found.params, Batch(x)).dense(model.atoms), z, rtol=1e-4, atol=1e-5)


def _probe(x):
    from sparsefleet.models import Probe

    return Probe(len(x), x.double().mean(0), x.double().var(0), x.double())
