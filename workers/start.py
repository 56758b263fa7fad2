"""Where a run begins: its identity, its start values, and the published dictionary that `encode` uses."""

from __future__ import annotations

import hashlib
import inspect
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models import TRAINING, Model, ModelError, Params
from ..models.pursuit import Coder, Given
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


def initial_params(job: LearnJob, params: Params, held: slice = slice(None)) -> Params:
    """`params` with those that the job's `init` gives in their place; of atoms, those that are `held`.

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
        if name in model.per_atom and value.shape[:1] == (model.atoms,):
            value = value[held]
        try:
            out[name] = model.adopt(name, torch.from_numpy(value.astype(np.float64)), own[name])
        except ModelError as err:
            raise JobError(f"init={job.init!r}: {err}") from err
    return out


def load_dictionary(job: EncodeJob) -> Dictionary:
    """The version or file that the job names, with its model as its card describes it and the job changes it, or with
    the job's coder.

    Raises:
        JobError: a file that holds no dictionary, or a model that cannot be changed like that.
        ModelError: atoms that are not finite.
    """
    coder = job.build_coder()
    if coder is not None and job.dictionary_is_file:
        dictionary, digest = _dictionary_file(job.dictionary)
        return _given(job, coder, job.dictionary, digest, dictionary)
    found = ArtifactStore(job.store, create=False).load(job.dictionary)
    made_by = LearnJob.parse(found.card["job"])
    if job.dtype:
        made_by = made_by.model_copy(update={"dtype": job.dtype})
    params = {n: torch.from_numpy(np.array(a)) for n, a in found.arrays.items()}
    if coder is not None:
        atoms = made_by.build_model().dictionary(params)
        return _given(job, coder, found.version.ref, found.version.snapshot, atoms)
    model = _accepting(made_by, job) if job.missing else made_by.build_model()
    if job.sigma is not None:
        if "sigma" not in params:
            raise JobError(f"sigma={job.sigma}: dictionary {found.version.ref} has no noise of that form")
        params["sigma"] = torch.full_like(params["sigma"], job.sigma)
    return Dictionary(found.version.ref, found.version.snapshot, model, params)


def _accepting(made_by: LearnJob, job: EncodeJob) -> Model:
    """The model with missing values allowed."""
    if not isinstance(getattr(made_by.build_model(), "missing", None), bool):
        raise JobError(f"missing=True: model {made_by.model!r} of {job.dictionary} needs complete rows")
    # Sets of states need complete rows.
    preselected = {"states": "preselected"} if made_by.settings.get("states") else {}
    settings = {**made_by.settings, **preselected, "missing": True}
    return made_by.model_copy(update={"settings": settings}).build_model()


def _given(job: EncodeJob, coder: Coder, ref: str, snapshot: str, atoms: torch.Tensor) -> Dictionary:
    dtype = job.dtype or ("float64" if atoms.dtype == torch.float64 else "float32")
    model = Given(atoms=atoms.shape[1], dtype=dtype, coder=coder)
    return Dictionary(ref, snapshot, model, {"W": atoms.to(model.torch_dtype).contiguous()})


def _dictionary_file(path: str) -> tuple[torch.Tensor, str]:
    """The atoms [D, H] that a file holds, and the SHA-256 of its content."""
    try:
        content = Path(path).read_bytes()
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        arrays = {"D": loaded} if isinstance(loaded, np.ndarray) else {n: loaded[n] for n in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as err:
        raise JobError(f"dictionary={path!r} cannot be read: {getattr(err, 'strerror', None) or err}") from err
    name = next((n for n in ("W", "D") if n in arrays), None)
    if name is None and "atoms" in arrays and arrays["atoms"].ndim == 2:  # an export of what lies atom by atom
        name, arrays = "atoms", {"atoms": arrays["atoms"].T}
    if name is None:
        raise JobError(
            f"dictionary={path!r} has {sorted(arrays)}; it needs an array W or D [dimensions, atoms], or atoms "
            "[atoms, dimensions]"
        )
    atoms = arrays[name]
    if atoms.ndim != 2 or 0 in atoms.shape or atoms.dtype.kind not in "fiu":
        raise JobError(
            f"dictionary={path!r}: {name} is {atoms.dtype} {atoms.shape}, not real numbers [dimensions, atoms]"
        )
    if not np.isfinite(atoms).all():
        raise JobError(f"dictionary={path!r}: {name} holds NaN or infinite values")
    wide = np.float64 if atoms.dtype.itemsize == 8 else np.float32
    return torch.from_numpy(np.array(atoms, dtype=wide)), hashlib.sha256(content).hexdigest()


def _init_arrays(job: LearnJob) -> dict[str, Any]:
    assert job.init is not None
    if not job.init_is_file:
        return ArtifactStore(job.store, create=False).load(job.init).arrays
    try:
        with np.load(job.init, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as err:
        raise JobError(f"init={job.init!r} cannot be read as .npz: {err}") from err


def _init_digest(job: LearnJob) -> str:
    if job.init is None:
        return ""
    if not job.init_is_file:
        return ArtifactStore(job.store, create=False).resolve(job.init).snapshot
    try:
        return hashlib.sha256(Path(job.init).read_bytes()).hexdigest()
    except OSError as err:
        raise JobError(f"init={job.init!r} cannot be read: {err.strerror}; give NAME@VERSION or a file .npz") from err
