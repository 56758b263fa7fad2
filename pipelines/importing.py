"""A result file of ProSper becomes a version in a store: its last parameters, and their course as history."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..models import Probe
from ..storage import ArtifactStore
from ..storage.artifacts import Version
from ..storage.prosper import ProsperResults, parameters_of, read_prosper
from ..workers.errors import JobError
from ..workers.job import LearnJob

Array = NDArray[np.float64]
ProsperModel = Literal["bsc", "tsc", "dsc", "mca", "mmca", "gsc"]
NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class Imported:
    """A version made from a result file."""

    version: Version
    model: str
    updates: int
    left_out: list[str]
    """Tables that are neither parameters nor one number a step."""


def import_prosper(
    path: str,
    *,
    store: str,
    name: str,
    model: ProsperModel | None = None,
    values: tuple[float, ...] = (),
    settings: Mapping[str, Any] | None = None,
) -> Imported:
    """Publish the last parameters of a ProSper result file as a version of `name`.

    Args:
        path: the file, as `StoreToH5` writes it.
        store: URI of the artifact store; made where there is none.
        name: of the artifact.
        model: which model it was; only spike-and-slab results say so themselves.
        values: of the latents of DSC (`states` in ProSper), which the file does not hold.
        settings: the model's own, like h_prime and gamma, which the file does not hold either.

    Raises:
        StorageError: the file cannot be read or is no result of ProSper.
        JobError, ModelError: the parameters do not fit the model.
    """
    results = read_prosper(path)
    found = parameters_of(results)
    model = model or _told_by(found, path)
    arrays, own = READERS[model](found, values)
    dim, atoms = arrays["W"].shape
    job = LearnJob.parse(
        {
            "data": results.path.name,
            "store": store,
            "name": name,
            "model": model,
            "atoms": atoms,
            "settings": own | dict(settings or {}),
        }
    )
    _check_shapes(job, arrays, path)
    history, updates = _history(results)
    source = {"program": "ProSper", "file": results.path.name, "sha256": results.sha256, "tables": sorted(results.last)}
    card = {
        "kind": "dictionary",
        "job": job.to_dict(),
        "model": {"name": model, **job.build_model().describe()},
        "imported": source,
        "data": {"uri": results.path.name, "fingerprint": f"prosper:{results.sha256}", "dim": dim},
        "run": {"updates": updates},
        "engine": {"name": "prosper"},
        "metrics": {n: float(v[-1]) for n, v in history.items() if np.isfinite(v[-1])},
        "notes": f"imported from {results.path.name}, a result file of ProSper",
    }
    version = ArtifactStore(store).publish(
        name, arrays=arrays, card=card, history=history, message=f"imported from {results.path.name}"
    )
    left_out = sorted(set(results.skipped) | (set(results.last) - set(results.course) - set(found)))
    return Imported(version, model, updates, left_out)


def _told_by(found: Mapping[str, Array], path: str) -> ProsperModel:
    if "psi_sq" in found or "psi" in found:
        return "gsc"
    several = found.get("pi", np.zeros(())).size > 1
    hint = "--model dsc --values …" if several else "--model bsc, tsc, mca or mmca"
    raise JobError(f"{path} does not say which model it belongs to: give {hint}")


def _common(found: Mapping[str, Array]) -> dict[str, Array]:
    """W [D, H] and the noise."""
    weights = found["W"]
    if weights.ndim != 2:
        raise JobError(f"W has rows of shape {list(weights.shape)}, a dictionary is [D, H]")
    if "sigma" in found:
        return {"W": weights, "sigma": _positive("sigma", found["sigma"].reshape(()))}
    if "sigma_sq" in found:
        variance = found["sigma_sq"]
        if variance.ndim == 2 and variance.shape != (1, 1):
            return {"W": weights, "noise_covariance": _covariance("sigma_sq", variance)}
        shape = () if variance.size == 1 else (len(weights),)
        return {"W": weights, "sigma": np.sqrt(_positive("sigma_sq", variance)).reshape(shape)}
    raise JobError("there is no table sigma or sigma_sq: the noise was not logged")


def _tied(found: Mapping[str, Array], values: tuple[float, ...]) -> tuple[dict[str, Array], dict[str, Any]]:
    del values
    prior = _probability(found)
    arrays, own = _with_offset(found)
    if prior.size == 1:
        return arrays | {"pi": prior.reshape(())}, own
    return arrays | {"pi": prior}, own | {"individual_priors": True}


def _discrete(found: Mapping[str, Array], values: tuple[float, ...]) -> tuple[dict[str, Array], dict[str, Any]]:
    prior = _probability(found).reshape(-1)
    if len(values) != len(prior):
        raise JobError(f"values={list(values)}: give the {len(prior)} states that the run had, in ProSper's order")
    if abs(prior.sum() - 1) > 1e-3:
        raise JobError(f"pi adds up to {prior.sum():.4g}, probabilities of all states to 1")
    arrays, own = _with_offset(found)
    prior = np.maximum(prior, 1e-6)
    return arrays | {"pi": prior / prior.sum(), "values": np.array(values)}, own | {"values": list(values)}


def _maximal(found: Mapping[str, Array], values: tuple[float, ...]) -> tuple[dict[str, Array], dict[str, Any]]:
    del values
    return _common(found) | {"pi": _probability(found).reshape(())}, {}


def _slab(found: Mapping[str, Array], values: tuple[float, ...]) -> tuple[dict[str, Array], dict[str, Any]]:
    del values
    arrays = _common(found)
    atoms = arrays["W"].shape[1]
    psi = found["psi_sq"] if "psi_sq" in found else found.get("psi", np.zeros(0))
    if "mu" not in found or psi.size not in (atoms, atoms**2):
        raise JobError("a spike-and-slab result needs tables mu [steps, H] and psi_sq [steps, H, H]")
    full = psi.ndim == 2
    apart = np.abs(psi - np.diag(np.diag(psi))).max() if full else 0.0
    if full and apart <= NEGLIGIBLE * np.abs(psi).max():
        psi, full = np.diag(psi).copy(), False
    psi = _covariance("psi_sq", psi) if full else _positive("psi_sq", psi.reshape(atoms))
    noise = "full" if "noise_covariance" in arrays else "diagonal" if arrays["sigma"].ndim else "scalar"
    prior = np.broadcast_to(_probability(found), (atoms,)).copy()
    return arrays | {"pi": prior, "mu": found["mu"].reshape(-1), "psi": psi}, {
        "slab": "full" if full else "diagonal",
        "noise": noise,
    }


READERS: dict[str, Callable[[Mapping[str, Array], tuple[float, ...]], tuple[dict[str, Array], dict[str, Any]]]] = {
    "bsc": _tied,
    "tsc": _tied,
    "dsc": _discrete,
    "mca": _maximal,
    "mmca": _maximal,
    "gsc": _slab,
}


def _with_offset(found: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Any]]:
    """ProSper's `mu` of the linear models is a constant vector that is added; one of zeros is left out."""
    arrays = _common(found)
    offset = found.get("mu")
    if offset is None or not offset.any():
        return arrays, {}
    return arrays | {"offset": offset.reshape(-1)}, {"offset": True}


def _probability(found: Mapping[str, Array]) -> Array:
    if "pi" not in found:
        raise JobError("there is no table pi: the prior was not logged")
    prior = found["pi"]
    if prior.min() < 0 or prior.max() > 1:
        raise JobError(f"pi holds {prior.min():.4g} to {prior.max():.4g}, which are no probabilities")
    return prior.clip(1e-6, 1 - 1e-6)


def _positive(name: str, value: Array) -> Array:
    if not (value > 0).all():
        raise JobError(f"{name} holds {value.min():.4g}: it must be above 0")
    return value


def _covariance(name: str, value: Array) -> Array:
    """The symmetric part; ProSper's update of psi_sq does not keep it symmetric.

    Raises:
        JobError: that is no covariance.
    """
    both = (value + value.T) / 2
    if np.linalg.eigvalsh(both).min() <= 0:
        raise JobError(f"{name} is no covariance (an eigenvalue is not above 0): start again from W with --init")
    return both


def _check_shapes(job: LearnJob, arrays: Mapping[str, Array], path: str) -> None:
    """Raises JobError where the arrays are not those of the job's model."""
    dim = len(arrays["W"])
    probe = Probe(1, torch.zeros(dim).double(), torch.ones(dim).double(), torch.zeros(1, dim).double())
    own = job.build_model().init(probe, torch.Generator().manual_seed(0))
    for name, value in own.items():
        if name.startswith("training/"):
            continue
        if name not in arrays or arrays[name].shape != tuple(value.shape):
            shape = list(arrays[name].shape) if name in arrays else "missing"
            raise JobError(f"{path} as {job.model}: {name} is {shape}, it must be {list(value.shape)}")


def _history(results: ProsperResults) -> tuple[dict[str, Array], int]:
    """Every table of one number a step under ProSper's name, `sigma` from `sigma_sq`, and the number of steps."""
    history = dict(results.course)
    if "sigma_sq" in history and "sigma" not in history:
        history["sigma"] = np.sqrt(np.maximum(history.pop("sigma_sq"), 0))
    return history, max((len(v) for v in history.values()), default=0)
