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


# -- SAELens --------------------------------------------------------------------------------------------------------


def to_saelens(model: Autoencoder, params: Params) -> tuple[Config, Tensors]:
    """(cfg.json, sae_weights.safetensors) as SAELens loads them.

    Raises:
        ModelError: SAELens knows no such autoencoder.
    """
    w = _folded(model, params)
    tensors: Tensors = {"W_enc": w["W_enc"].T, "W_dec": w["W_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    more: Config = {}
    if isinstance(model, BatchTopK) and not model.signed:
        architecture, threshold = "jumprelu", w["threshold"].expand(model.atoms)
        # There an entry must be above the threshold, here it may be equal to it.
        tensors["threshold"] = torch.nextafter(threshold, torch.zeros_like(threshold)).to(w["b_enc"].dtype)
    elif isinstance(model, JumpReLU):
        architecture = "jumprelu"
        tensors["threshold"] = w["threshold"]
    elif isinstance(model, Gated):
        architecture = "gated"
        tensors |= {"b_gate": tensors.pop("b_enc"), "b_mag": w["b_mag"], "r_mag": w["r_mag"]}
    elif isinstance(model, ReLU):
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
        "metadata": {"sae_lens_version": "6", "training_architecture": type(model).__name__},
    }
    return config | more, {name: value.contiguous().to(model.torch_dtype) for name, value in tensors.items()}


def from_saelens(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Imported:
    """The autoencoder that a SAELens folder holds.

    Raises:
        ModelError: an architecture or a normalization that this project has not, or tensors that do not fit.
    """
    name = str(config.get("architecture", ""))
    if name not in FROM_SAELENS:
        raise ModelError(f"architecture {name!r} cannot be imported: choose one of {', '.join(FROM_SAELENS)}")
    for key in ("normalize_activations", "reshape_activations"):
        if config.get(key, "none") != "none":
            raise ModelError(f"{key}={config[key]!r}: only autoencoders whose normalization is folded in are imported")
    model, extra = FROM_SAELENS[name]
    bias = "b_gate" if model == "gated" else "b_enc"
    found = _needed(tensors, ("W_enc", "W_dec", bias, "b_dec", *extra))
    transcoder = name.endswith("transcoder")
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


# -- sparsify -------------------------------------------------------------------------------------------------------


def to_sparsify(model: Autoencoder, params: Params) -> tuple[Config, Tensors]:
    """(cfg.json, sae.safetensors) as sparsify loads them.

    Raises:
        ModelError: sparsify knows no such autoencoder.
    """
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
        ModelError: a skip connection or an activation that this project has not, or tensors that do not fit.
    """
    activation = str(config.get("activation", "topk"))
    if activation not in ("topk", "groupmax"):
        raise ModelError(f"activation={activation!r} cannot be imported: topk and groupmax can")
    if config.get("skip_connection") or "W_skip" in tensors:
        raise ModelError("skip_connection=true cannot be imported: there is no linear path beside the code here")
    found = _needed(tensors, ("encoder.weight", "encoder.bias", "W_dec", "b_dec"))
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


def _needed(tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensors:
    for name in names:
        if name not in tensors:
            raise ModelError(f"tensor {name!r} is missing; there are {', '.join(sorted(tensors))}")
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ModelError(f"tensor {name!r} holds NaN or infinite values")
    kept = torch.float64 if tensors[names[0]].dtype == torch.float64 else torch.float32
    return {name: tensors[name].to(kept) for name in names}


def _k(config: Mapping[str, Any]) -> int:
    k = config.get("k")
    if not isinstance(k, int):
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
    atoms, dim = params["W_enc"].shape
    wanted = {"W_dec": 2, "b_enc": 1, "b_dec": 1, "threshold": 1, "r_mag": 1, "b_mag": 1}
    for name, ndim in wanted.items():
        if name not in params:
            continue
        shape = params[name].shape
        rows = params["W_dec"].shape[-1] if name == "b_dec" else atoms
        if len(shape) != ndim or shape[0] != rows:
            raise ModelError(f"{name} has shape {list(shape)}, which does not fit an encoder of [{atoms}, {dim}]")
    if not transcoder and params["W_dec"].shape[1] != dim:
        raise ModelError(f"W_dec has rows of {params['W_dec'].shape[1]} and W_enc of {dim} dimensions: no autoencoder")
    one = torch.ones((), dtype=params["W_enc"].dtype)
    params["scale"] = one
    if transcoder:
        settings, params["target_scale"] = {**settings, "target": "outputs"}, one.clone()
    if "k" in settings and not 1 <= settings["k"] <= atoms:
        raise ModelError(f"k={settings['k']} active latents of {atoms}")
    # float64 where the tensors have it.
    settings = {**settings, "dtype": "float64"} if one.dtype == torch.float64 else settings
    return Imported(model, atoms, settings, {name: value.contiguous() for name, value in params.items()})
