"""Models by name: one line each. A user's own model is named as `package.module:Class`."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from importlib import import_module
from typing import Any, TypeVar

from .base import Model
from .errors import ModelError

MODELS = {
    "bsc": "sparsefleet.models.truncated.bsc:BSC",
    "tsc": "sparsefleet.models.truncated.discrete:TSC",
    "dsc": "sparsefleet.models.truncated.discrete:DSC",
    "gsc": "sparsefleet.models.truncated.gsc:GSC",
    "mca": "sparsefleet.models.truncated.mca:MCA",
    "mmca": "sparsefleet.models.truncated.mmca:MMCA",
    "mod": "sparsefleet.models.factorization.mod:MOD",
    "ksvd": "sparsefleet.models.factorization.ksvd:KSVD",
    "online": "sparsefleet.models.factorization.online:Online",
    "procrustes": "sparsefleet.models.factorization.procrustes:Procrustes",
    "odlfw": "sparsefleet.models.factorization.odlfw:ODLFW",
    "snmf": "sparsefleet.models.factorization.snmf:SNMF",
    "nmf": "sparsefleet.models.factorization.nmf:NMF",
    "noisyor": "sparsefleet.models.truncated.noisyor:NoisyOR",
    "topk": "sparsefleet.models.autoencoders.topk:TopK",
    "abstopk": "sparsefleet.models.autoencoders.topk:AbsTopK",
    "groupmax": "sparsefleet.models.autoencoders.topk:GroupMax",
    "gsae": "sparsefleet.models.autoencoders.downstream:GradientTopK",
    "batchtopk": "sparsefleet.models.autoencoders.batch:BatchTopK",
    "batchabstopk": "sparsefleet.models.autoencoders.batch:BatchAbsTopK",
    "matryoshka": "sparsefleet.models.autoencoders.matryoshka:Matryoshka",
    "relu": "sparsefleet.models.autoencoders.relu:ReLU",
    "gated": "sparsefleet.models.autoencoders.gated:Gated",
    "jumprelu": "sparsefleet.models.autoencoders.jumprelu:JumpReLU",
}


T = TypeVar("T")


def load_model_class(name: str) -> type[Model]:
    """The model class called `name` here, or at `package.module:Class`.

    Raises:
        ModelError: the name is unknown, cannot be imported, or is not a frozen dataclass derived from `Model`.
    """
    target = MODELS.get(name, name)
    module_name, colon, class_name = target.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ModelError(f"unknown model {name!r}{hint} Choose one of {', '.join(MODELS)}, or package.module:Class")
    try:
        module = import_module(module_name)
    except ImportError as err:
        # Another module that is missing would be one that this one imports.
        found = isinstance(err, ModuleNotFoundError) and f"{module_name}.".startswith(f"{err.name}.")
        where = "; --module-path names the folder that holds it" if found else ""
        raise ModelError(f"model {name!r}: cannot import {module_name!r} ({err}){where}") from err
    found = getattr(module, class_name, None)
    if found is None:
        raise ModelError(f"model {name!r}: module {module_name!r} has no class {class_name!r}")
    if not (inspect.isclass(found) and issubclass(found, Model) and dataclasses.is_dataclass(found)):
        raise ModelError(f"model {name!r}: {class_name} must be a frozen dataclass derived from sparsefleet.Model")
    return found


def make_model(name: str, settings: dict[str, Any]) -> Model:
    """The model `name` with `settings`, checked.

    Raises:
        ModelError: an unknown setting (the nearest is suggested), a value of the wrong type or out of range.
    """
    return configured("model", name, load_model_class(name), settings)


def name_of(model: Model) -> str:
    """What `make_model` calls a model: its name here, or package.module:Class."""
    target = f"{type(model).__module__}:{type(model).__qualname__}"
    return next((name for name, known in MODELS.items() if known == target), target)


def configured(kind: str, name: str, cls: type[T], settings: dict[str, Any]) -> T:
    """The frozen dataclass `cls` with `settings`, checked; `kind` and `name` say in messages what it is.

    Raises:
        ModelError: an unknown setting (the nearest is suggested), a value of the wrong type or out of range.
    """
    _refuse_unknown(f"{kind} {name!r}", cls, settings)
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_python(settings)
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ModelError):
            raise ModelError(str(cause)) from None
        problem = f"give a list, as in [{first['input']}]" if first["type"] == "tuple_type" else first["msg"]
        raise ModelError(f"{kind} {name!r}: {where}={first.get('input')!r}: {problem}") from None


def _refuse_unknown(what: str, cls: type, settings: dict[str, Any], within: str = "") -> None:
    """ModelError for settings, or settings of a group of settings, that a class does not have."""
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in settings.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = (
                f"did you mean {f'{within}{near[0]}'!r}?" if near else f"it has {', '.join(within + k for k in known)}"
            )
            raise ModelError(f"{what} has no setting {f'{within}{key}'!r}; {hint}")
        group = known[key].default
        if dataclasses.is_dataclass(group) and isinstance(value, dict):
            _refuse_unknown(what, type(group), value, f"{within}{key}.")
