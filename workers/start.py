"""Where a run begins: its identity, its start values, and the published dictionary that `encode` uses."""

from __future__ import annotations

import hashlib
import inspect
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models import TRAINING, Model, ModelError, Params
from ..storage import ArtifactStore, Dataset
from ..storage.artifacts.export import SERIES
from .errors import JobError
from .job import EncodeJob, LearnJob


@dataclass(frozen=True)
class Dictionary:
    """A published dictionary, ready to encode with."""

    ref: str
    snapshot: str
    """Identity of the version's content, whatever the store."""
    model: Model
    params: Params


def run_id_of(job: LearnJob, data: Dataset) -> str:
    """The run's identity: the job, the data, the start values, and a model of one's own, each by its content."""
    return job.run_id(data.fingerprint, _init_digest(job), source_digest(job))


def source_digest(job: LearnJob) -> str:
    """SHA-256 of the file of a model that is named as module:Class, which may change between two runs; else empty."""
    if ":" not in job.model:
        return ""
    source = inspect.getsourcefile(type(job.build_model()))
    return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else ""


def initial_params(job: LearnJob, params: Params) -> Params:
    """`params` with those that the job's `init` gives in their place.

    Raises:
        JobError: names or shapes that this model does not have, or values that are not finite.
    """
    if job.init is None:
        return params
    given = _init_arrays(job)
    own = {n: p for n, p in params.items() if not n.startswith(TRAINING)}
    # An export holds the course of the free energy too.
    unknown = sorted(set(given) - set(own) - {SERIES})
    if unknown:
        raise JobError(
            f"init={job.init!r}: parameters {unknown} are not of model {job.model!r}, which has {sorted(own)}"
        )
    out = dict(params)
    model = job.build_model()
    for name in set(given) & set(own):
        value = np.asarray(given[name])
        if value.dtype.kind not in "fiu":
            raise JobError(f"init={job.init!r}: {name} holds {value.dtype}, not numbers")
        if not np.isfinite(value).all():
            raise JobError(f"init={job.init!r}: {name} holds NaN or infinite values")
        try:
            out[name] = model.adopt(name, torch.from_numpy(value.astype(np.float64)), own[name])
        except ModelError as err:
            raise JobError(f"init={job.init!r}: {err}") from err
    return out


def load_dictionary(job: EncodeJob) -> Dictionary:
    """The version that the job names, with its model as its card describes it."""
    found = ArtifactStore(job.store, create=False).load(job.dictionary)
    made_by = LearnJob.parse(found.card["job"])
    if job.dtype:
        made_by = made_by.model_copy(update={"dtype": job.dtype})
    params = {n: torch.from_numpy(np.array(a)) for n, a in found.arrays.items()}
    return Dictionary(found.version.ref, found.version.snapshot, made_by.build_model(), params)


def _is_file(init: str) -> bool:
    return init.endswith(".npz")


def _init_arrays(job: LearnJob) -> dict[str, Any]:
    assert job.init is not None
    if not _is_file(job.init):
        return ArtifactStore(job.store, create=False).load(job.init).arrays
    try:
        with np.load(job.init, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as err:
        raise JobError(f"init={job.init!r} cannot be read as .npz: {err}") from err


def _init_digest(job: LearnJob) -> str:
    if job.init is None:
        return ""
    if not _is_file(job.init):
        return ArtifactStore(job.store, create=False).resolve(job.init).snapshot
    try:
        return hashlib.sha256(Path(job.init).read_bytes()).hexdigest()
    except OSError as err:
        raise JobError(f"init={job.init!r} cannot be read: {err.strerror}; give NAME@VERSION or a file .npz") from err
