"""Encoding a data set under a published dictionary. Plain functions; flows.py wraps them for Prefect."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..models import Batch, Codes
from ..storage import ArtifactStore, Dataset, open_dataset
from ..workers.columns import read_columns
from ..workers.encoding import check_fits, infer
from ..workers.errors import JobError
from ..workers.job import EncodeJob
from ..workers.start import load_dictionary
from . import report
from .learning import Fit, fit
from .paths import absolute, make_importable
from .reporter import Reporter, silent

SHOWN = 16
DRY_ROWS = 2048


@dataclass(frozen=True)
class EncodeResult:
    """A data set of codes, and how it came about."""

    out: str
    rows: int
    dictionary: str
    fit: Fit
    figures: dict[str, bytes]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the pictures left out."""
        return {
            "out": self.out,
            "rows": self.rows,
            "dictionary": self.dictionary,
            "seconds": self.fit.seconds,
            "metrics": self.fit.metrics,
        }


def encode(job: EncodeJob, reporter: Reporter = silent) -> EncodeResult:
    """Write the sparse codes of a data set as a data set of indices and values. The same call continues.

    Args:
        job: which data, under which dictionary, where to.
        reporter: receives the run's messages.

    Raises:
        JobError, ModelError, StorageError: the job cannot be done as it is; nothing was started.
        EngineError: the workers failed; shards that are done stay done.
    """
    job = check(job)
    return finish(job, fit(job, reporter, "encode"))


def check(job: EncodeJob) -> EncodeJob:
    """The job with absolute addresses and the dictionary's version pinned, if it can be done.

    Raises:
        JobError, StorageError: it cannot; the message says why.
    """
    job = absolute(job)
    make_importable(job.module_path)
    data = open_dataset(job.data)
    if data.kind != "dense":
        raise JobError(f"data={job.data!r} holds codes already; encoding needs a data set of rows")
    if job.out == job.data:
        raise JobError(f"out={job.out!r} is the data set itself; choose another place for the codes")
    if job.build_coder() is not None and job.dictionary_is_file:
        if not os.path.isfile(job.dictionary):
            raise JobError(f"dictionary={job.dictionary!r}: there is no such file")
        return job
    version = ArtifactStore(job.store, create=False).resolve(job.dictionary)
    return job.model_copy(update={"dictionary": version.ref})


def finish(job: EncodeJob, fit: Fit) -> EncodeResult:
    """Open the codes, average what was found about single rows, and draw what some of the codes give back."""
    codes, data = open_dataset(job.out), open_dataset(job.data)
    fit = replace(fit, metrics=fit.metrics | averages(job, data, codes))
    picture = _picture(job, data, codes)
    return EncodeResult(codes.uri, codes.rows, job.dictionary, fit, {"codes.png": picture} if picture else {})


def averages(job: EncodeJob, data: Dataset, codes: Dataset) -> dict[str, float]:
    """Mean log-likelihood and entropy over all rows, nats.

    Rows that the dictionary was learned on predict nothing: their mean is called `training_log_likelihood`.
    """
    found = {
        name: sum(float(codes.read(s.start, s.stop, name).sum()) for s in codes.shards()) / codes.rows
        for name in ("log_likelihood", "entropy")
        if name in codes.arrays
    }
    if "log_likelihood" not in found:
        return found
    learned_on = ArtifactStore(job.store, create=False).card(job.dictionary)["data"] or {}
    if learned_on.get("fingerprint") == data.fingerprint:
        return {"training_log_likelihood": found.pop("log_likelihood"), **found}
    return found


def dry_run(job: EncodeJob) -> dict[str, Any]:
    """What would be written, and the codes of the first rows; nothing is kept.

    Raises:
        JobError, ModelError, StorageError: as `encode`.
    """
    job = check(job)
    data = open_dataset(job.data)
    found = load_dictionary(job)
    rows = min(data.rows, DRY_ROWS)
    check_fits(found, data)
    x = torch.from_numpy(read_columns(data, found.model.encode_arrays, 0, rows)).to(found.model.torch_dtype)
    params = found.model.prepare(found.params)
    begun = time.monotonic()
    codes = infer(found.model, params, Batch(x), job.wanted, keep=job.keep)
    speed = rows / max(time.monotonic() - begun, 1e-9)
    return {
        "data": data.uri,
        "dictionary": found.ref,
        "out": job.out,
        "rows": data.rows,
        "shards": len(data.shards()),
        "trial_rows": rows,
        "arrays": [f"{name} {[data.rows, *value.shape[1:]]}" for name, value in codes.items()],
        "entries_per_row": float((codes["indices"] >= 0).sum()) / rows,
        "rows_per_second": speed,
        "seconds": data.rows / speed / job.workers,
    }


def _picture(job: EncodeJob, data: Dataset, codes: Dataset) -> bytes | None:
    if data.patch_shape is None:
        return None
    found = load_dictionary(job)
    atoms = found.model.dictionary(found.params).double().cpu().numpy()
    starts = np.linspace(0, codes.rows - 1, min(SHOWN, codes.rows)).astype(int)
    rows = np.nan_to_num(np.concatenate([data.read(i, i + 1) for i in starts]).astype(np.float64))
    picked = lambda name: np.concatenate([codes.read(i, i + 1, name) for i in starts])  # noqa: E731
    if "reconstruction" in codes.arrays:
        rebuilt = picked("reconstruction").astype(np.float64)
    else:
        rebuilt = Codes(*(torch.from_numpy(picked(n)) for n in ("indices", "values"))).dense(atoms.shape[1])
        rebuilt = rebuilt.double().numpy() @ atoms.T
    return report.codes_picture(data.to_pixels(rows.T).T, data.to_pixels(rebuilt.T).T, data.patch_shape)
