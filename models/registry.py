"""Models by name: one line each. A user's own model is named as `package.module:Class`."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from importlib import import_module
from typing import Any

from .base import Model
from .errors import ModelError

MODELS = {
    "bsc": "sparsefleet.models.truncated.bsc:BSC",
    "tsc": "sparsefleet.models.truncated.discrete:TSC",
    "dsc": "sparsefleet.models.truncated.discrete:DSC",
    "gsc": "sparsefleet.models.truncated.gsc:GSC",
    "mca": "sparsefleet.models.truncated.maximal:MCA",
    "mmca": "sparsefleet.models.truncated.maximal:MMCA",
    "noisyor": "sparsefleet.models.truncated.noisyor:NoisyOR",
    "topk": "sparsefleet.models.autoencoders.topk:TopK",
}


def load_model_class(name: str) -> type[Model]:
    """The model class called `name` here, or at `package.module:Class`.

    Raises:
        ModelError: the name is unknown, cannot be imported, or is not a frozen dataclass derived from `Model`.
    """
    target = MODELS.get(name, name)
    module_name, colon, class_name = target.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ModelError(f"unknown model {name!r}{hint} Choose one of {', '.join(MODELS)}, or package.module:Class")
    try:
        module = import_module(module_name)
    except ImportError as err:
        raise ModelError(f"model {name!r}: cannot import {module_name!r} ({err})") from err
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
    cls = load_model_class(name)
    _refuse_unknown(name, cls, settings)
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_python(settings)
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ModelError):
            raise ModelError(str(cause)) from None
        raise ModelError(f"model {name!r}: {where}={first.get('input')!r}: {first['msg']}") from None


def _refuse_unknown(name: str, cls: type, settings: dict[str, Any], within: str = "") -> None:
    """ModelError for settings, or settings of a group of settings, that a class does not have."""
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in settings.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = (
                f"did you mean {f'{within}{near[0]}'!r}?" if near else f"it has {', '.join(within + k for k in known)}"
            )
            raise ModelError(f"model {name!r} has no setting {f'{within}{key}'!r}; {hint}")
        group = known[key].default
        if dataclasses.is_dataclass(group) and isinstance(value, dict):
            _refuse_unknown(name, type(group), value, f"{within}{key}.")
