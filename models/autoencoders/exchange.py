"""Autoencoders in the layouts of SAELens (6.x) and sparsify (1.3), as plain settings and tensors; no files here.

Both directions keep codes and reconstructions. Going out, the data's scale is folded into biases and thresholds, so
that codes stay in the units of the data and atoms keep norm 1: with x scaled by s, z' = z / s needs b' = b / s and
θ' = θ / s and the same matrices. What learns through a batch (BatchTopK, Matryoshka) leaves as JumpReLU at its learned
threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base import Params
from ..errors import ModelError
from .autoencoder import Autoencoder
from .batch import BatchTopK
from .downstream import GradientTopK
from .gated import Gated
from .jumprelu import JumpReLU
from .matryoshka import Matryoshka
from .relu import ReLU
from .topk import AbsTopK, GroupMax, TopK

Tensors = dict[str, Tensor]
Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Imported:
    """An autoencoder from elsewhere: enough to make a model of this project, and its parameters."""

    model: str
    atoms: int
    settings: Config
    params: Params


def _require_choice_by_activation(model: Autoencoder) -> None:
    if isinstance(model, GradientTopK) and model.encode_by == "gradient":
        raise ModelError(
            "encode_by=gradient: other libraries choose latents without gradients and would give other codes: "
            "export as npz or safetensors, or learn with encode_by=activation"
        )


# -- SAELens --------------------------------------------------------------------------------------------------------


def to_saelens(model: Autoencoder, params: Params) -> tuple[Config, Tensors]:
    """(cfg.json, sae_weights.safetensors) as SAELens loads them.

    Raises:
        ModelError: SAELens knows no such autoencoder.
    """
    _require_choice_by_activation(model)
    w = _folded(model, params)
    tensors: Tensors = {"W_enc": w["W_enc"].T, "W_dec": w["W_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    more: Config = {}
    if type(model) in (BatchTopK, Matryoshka):
        architecture, threshold = "jumprelu", w["threshold"].to(model.torch_dtype).expand(model.atoms)
        # There an entry must be above the threshold, here it may be equal to it.
        tensors["threshold"] = torch.nextafter(threshold, torch.zeros_like(threshold))
    elif type(model) is JumpReLU:
        architecture = "jumprelu"
        tensors["threshold"] = w["threshold"]
    elif type(model) is Gated:
        architecture = "gated"
        tensors |= {"b_gate": tensors.pop("b_enc"), "b_mag": w["b_mag"], "r_mag": w["r_mag"]}
    elif type(model) is ReLU:
        architecture = "standard"
    elif type(model) in (TopK, AbsTopK, GradientTopK):
        assert isinstance(model, TopK)
        architecture = "abstopk" if model.signed else "topk"
        more = {"k": model.k, "rescale_acts_by_decoder_norm": False}
    else:
        raise ModelError(f"SAELens has no {type(model).__name__}: export as npz or safetensors")
    if model.target is not None:
        architecture = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}.get(architecture, "")
        if not architecture:
            raise ModelError(f"SAELens has no transcoder that is a {type(model).__name__}: export as sparsify")
        more["d_out"] = w["W_dec"].shape[1]
    config = {
        "architecture": architecture,
        "d_in": w["W_enc"].shape[1],
        "d_sae": model.atoms,
        "dtype": model.dtype,
        "device": "cpu",
        "apply_b_dec_to_input": model.target is None,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"exported_by": "sparsefleet", "training_architecture": type(model).__name__},
    }
    return config | more, {name: value.contiguous().to(model.torch_dtype) for name, value in tensors.items()}


def from_saelens(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Imported:
    """The autoencoder that a SAELens folder holds.

    Raises:
        ModelError: an architecture or a normalization that this project has not, a folder of SAELens before 6, whose
            settings mean something else, or tensors that do not fit.
    """
    for key in BEFORE_6:
        if key in config:
            raise ModelError(f"{key} is a setting of SAELens before 6: load and save the folder with SAELens 6 first")
    name = str(config.get("architecture", ""))
    if name not in FROM_SAELENS:
        raise ModelError(f"architecture {name!r} cannot be imported: choose one of {', '.join(FROM_SAELENS)}")
    for key in ("normalize_activations", "reshape_activations"):
        if config.get(key, "none") != "none":
            raise ModelError(f"{key}={config[key]!r}: only autoencoders whose normalization is folded in are imported")
    model, extra = FROM_SAELENS[name]
    bias = "b_gate" if model == "gated" else "b_enc"
    transcoder = name.endswith("transcoder")
    if transcoder and config.get("apply_b_dec_to_input", True):
        raise ModelError("apply_b_dec_to_input=true cannot be imported for a transcoder: b_dec belongs to its outputs")
    out = "E" if transcoder else "D"
    wanted = {"W_enc": "DH", "W_dec": "H" + out, bias: "H", "b_dec": out}
    found = _needed(tensors, wanted | dict.fromkeys(extra, "H"))
    params = {"W_enc": found["W_enc"].T, "W_dec": found["W_dec"], "b_enc": found[bias], "b_dec": found["b_dec"]}
    params |= {key: found[key] for key in extra}
    settings: Config = {"k": _k(config)} if model in ("topk", "abstopk") else {}
    if config.get("rescale_acts_by_decoder_norm"):
        # Selected and given out are u |atom|, and atoms enter the sum with norm 1.
        norm = params["W_dec"].norm(dim=1, keepdim=True)
        params["W_enc"], params["W_dec"] = params["W_enc"] * norm, params["W_dec"] / norm.clamp(min=1e-30)
        params["b_enc"] = params["b_enc"] * norm[:, 0]
    if not transcoder and not config.get("apply_b_dec_to_input", True):
        params = _undo_centring(params, "r_mag" in extra)
    return _imported(model, settings, params, transcoder)


FROM_SAELENS: dict[str, tuple[str, tuple[str, ...]]] = {
    "standard": ("relu", ()),
    "gated": ("gated", ("r_mag", "b_mag")),
    "jumprelu": ("jumprelu", ("threshold",)),
    "topk": ("topk", ()),
    "abstopk": ("abstopk", ()),
    "transcoder": ("relu", ()),
    "jumprelu_transcoder": ("jumprelu", ("threshold",)),
}
"""Architecture -> (model here, its own tensors)."""
BEFORE_6 = ("activation_fn_str", "activation_fn", "activation_fn_kwargs", "finetuning_scaling_factor")
"""Settings that SAELens wrote before version 6 and no longer does."""


# -- sparsify -------------------------------------------------------------------------------------------------------


def to_sparsify(model: Autoencoder, params: Params) -> tuple[Config, Tensors]:
    """(cfg.json, sae.safetensors) as sparsify loads them.

    Raises:
        ModelError: sparsify knows no such autoencoder.
    """
    _require_choice_by_activation(model)
    if type(model) not in (TopK, GroupMax, GradientTopK):
        raise ModelError(f"sparsify has no {type(model).__name__}, only topk and groupmax: export as saelens")
    assert isinstance(model, TopK)
    w = _folded(model, params)
    if w["W_dec"].shape[1] != w["W_enc"].shape[1]:
        raise ModelError(
            f"sparsify needs outputs as long as inputs, not {w['W_dec'].shape[1]} for {w['W_enc'].shape[1]}: "
            "export as npz or safetensors"
        )
    config = {
        "activation": "groupmax" if isinstance(model, GroupMax) else "topk",
        "expansion_factor": max(1, round(model.atoms / w["W_enc"].shape[1])),
        "normalize_decoder": True,
        "num_latents": model.atoms,
        "k": model.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": model.target is not None,
        "d_in": w["W_enc"].shape[1],
    }
    tensors = {"encoder.weight": w["W_enc"], "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    return config, {name: value.contiguous() for name, value in tensors.items()}


def from_sparsify(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Imported:
    """The autoencoder that a sparsify folder holds.

    Raises:
        ModelError: a skip connection, an activation or signs that this project has not, or tensors that do not fit.
    """
    activation = str(config.get("activation", "topk"))
    if activation not in ("topk", "groupmax"):
        raise ModelError(f"activation={activation!r} cannot be imported: topk and groupmax can")
    if config.get("skip_connection") or "W_skip" in tensors:
        raise ModelError("skip_connection=true cannot be imported: there is no linear path beside the code here")
    if config.get("signed"):
        raise ModelError("signed=true cannot be imported: its codes may be below 0")
    found = _needed(tensors, {"encoder.weight": "HD", "encoder.bias": "H", "W_dec": "HD", "b_dec": "D"})
    names = {"W_enc": "encoder.weight", "W_dec": "W_dec", "b_enc": "encoder.bias", "b_dec": "b_dec"}
    params = {ours: found[theirs] for ours, theirs in names.items()}
    return _imported(activation, {"k": _k(config)}, params, bool(config.get("transcode")))


FORMATS: dict[
    str,
    tuple[
        str,
        Callable[[Autoencoder, Params], tuple[Config, Tensors]],
        Callable[[Mapping[str, Any], Mapping[str, Tensor]], Imported],
    ],
] = {
    "saelens": ("sae_weights.safetensors", to_saelens, from_saelens),
    "sparsify": ("sae.safetensors", to_sparsify, from_sparsify),
}
"""Layout -> (file of the tensors, beside cfg.json; out; in)."""


# -- both -----------------------------------------------------------------------------------------------------------


def _folded(model: Autoencoder, params: Params) -> Params:
    """Weights that take and give the units of the data."""
    inwards = params["scale"]
    outwards = inwards if model.target is None else params["target_scale"]
    folded = {name: params[name] / outwards for name in ("b_enc", "b_dec")}
    for name in ("threshold", "b_mag"):
        if name in params:
            folded[name] = params[name] / outwards
    folded["W_enc"] = params["W_enc"] if model.target is None else params["W_enc"] * (inwards / outwards)
    return {**params, **folded}


def _needed(tensors: Mapping[str, Tensor], shapes: Mapping[str, str]) -> Tensors:
    """The tensors that `shapes` names, in float32 (float64 where the first is). "DH": [D, H], for whatever D and H, but
    the same in all of them."""
    kept = torch.float32
    found: Tensors = {}
    sizes: dict[str, int] = {}
    for name, letters in shapes.items():
        if name not in tensors:
            raise ModelError(f"tensor {name!r} is missing; there are {', '.join(sorted(tensors))}")
        tensor = tensors[name]
        _fitting(name, tensor, letters, sizes)
        if not found and tensor.dtype == torch.float64:
            kept = torch.float64
        found[name] = tensor.to(kept)
        if not bool(torch.isfinite(found[name]).all()):
            raise ModelError(f"tensor {name!r} holds NaN or infinite values, or some beyond {kept}")
    return found


def _fitting(name: str, tensor: Tensor, letters: str, sizes: dict[str, int]) -> None:
    """ModelError unless the tensor has a shape with these letters; `sizes` learns those that are new."""
    if tensor.is_complex():
        raise ModelError(f"tensor {name!r} holds {tensor.dtype}, not real numbers")
    shape = list(tensor.shape)
    wanted = [sizes.get(letter, letter) for letter in letters]
    if len(shape) != len(wanted) or 0 in shape or any(isinstance(w, int) and w != s for s, w in zip(shape, wanted)):
        raise ModelError(f"tensor {name!r} has shape {shape}, not [{', '.join(map(str, wanted))}]")
    sizes.update(zip(letters, shape, strict=True))


def _k(config: Mapping[str, Any]) -> int:
    k = config.get("k")
    if not isinstance(k, int) or isinstance(k, bool):
        raise ModelError(f"k={k!r} in the configuration: it must be a whole number")
    return k


def _undo_centring(params: Params, gated: bool) -> Params:
    """The same encoder for rows from which b_dec is subtracted."""
    shift = params["W_enc"] @ params["b_dec"]
    params = {**params, "b_enc": params["b_enc"] + shift}
    if gated:
        params["b_mag"] = params["b_mag"] + params["r_mag"].exp() * shift
    return params


def _imported(model: str, settings: Config, params: Params, transcoder: bool) -> Imported:
    for name, value in params.items():
        if not bool(torch.isfinite(value).all()):
            raise ModelError(f"{name} becomes infinite in {value.dtype} with its configuration folded in")
    atoms = params["W_enc"].shape[0]
    one = torch.ones((), dtype=params["W_enc"].dtype)
    params["scale"] = one
    if transcoder:
        settings, params["target_scale"] = {**settings, "target": "outputs"}, one.clone()
    if "k" in settings and not 1 <= settings["k"] <= atoms:
        raise ModelError(f"k={settings['k']} active latents of {atoms}")
    # float64 where the tensors have it.
    settings = {**settings, "dtype": "float64"} if one.dtype == torch.float64 else settings
    return Imported(model, atoms, settings, {name: value.contiguous() for name, value in params.items()})
