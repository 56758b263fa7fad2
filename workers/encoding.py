"""One worker's part of encoding: whole shards in, whole shards of codes and of what else was asked for out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..models import Batch, Codes, Model, Params, Wanted
from ..models.pursuit import Given, squared_errors
from ..models.registry import name_of
from ..storage import Dataset, DatasetWriter, Shard, create_dataset, open_writer
from .columns import read_columns, widths
from .errors import JobError
from .job import EncodeJob
from .start import Dictionary


class ShardEncoder:
    """Encodes shards of `data` under a dictionary."""

    def __init__(self, job: EncodeJob, data: Dataset, dictionary: Dictionary, device: torch.device) -> None:
        """Raises JobError as `check_fits`."""
        self._job, self._data, self._model = job, data, dictionary.model
        self._ref, self._snapshot = dictionary.ref, dictionary.snapshot
        self._device = device
        self._params = self._model.prepare({n: p.to(device) for n, p in dictionary.params.items()})
        self.squares = [0.0, 0.0]
        """Σ‖x - D a‖² and Σ‖x‖² of the rows coded so far, where a coder codes them; else zero."""
        self.note = f"; {self._model.note(self._params)}" if isinstance(self._model, Given) else ""
        self._arrays = self._model.encode_arrays
        check_fits(dictionary, data)
        self._together = self._model.coder.together if isinstance(self._model, Given) else 1
        check_groups(self._together, data)
        self._trial = self._encode(np.zeros((1, sum(widths(data, self._arrays))), dtype=np.float32))

    def create(self) -> None:
        """Lay out the data set of codes, sharded as the data is; continues an unfinished one of the same kind."""
        create_dataset(
            self._job.out,
            rows=self._data.rows,
            arrays={name: (value.shape[1:], str(value.dtype)) for name, value in self._trial.items()},
            shard_rows=self._data.shard_rows,
            chunk_rows=self._data.chunk_rows,
            attributes={
                "kind": "codes",
                "atoms": self._model.atoms,
                "dictionary": self._ref,
                "snapshot": self._snapshot,
                **({"coder": self._job.coder, "coder_settings": self._job.coder_settings} if self._job.coder else {}),
                "source": {"uri": self._data.uri, "fingerprint": self._data.fingerprint},
                **self._asked(),
            },
            overwrite=self._job.overwrite,
        )

    def _asked(self) -> dict[str, Any]:
        """What was asked for beyond codes, for the data set's attributes."""
        wanted, sigma = self._job.wanted, self._job.sigma
        asked = {} if wanted.plain else {"outputs": list(wanted.outputs), "adaptive": wanted.adaptive}
        return asked if sigma is None else asked | {"sigma": sigma}

    def open(self) -> DatasetWriter:
        """The laid-out data set of codes, to write shards into."""
        return open_writer(self._job.out)

    def encode_shard(self, writer: DatasetWriter, shard: Shard) -> int:
        """Encode one shard and write it; returns how many entries its codes have."""
        step = max(self._together, self._job.batch_rows - self._job.batch_rows % self._together)
        parts = [
            self._encode(read_columns(self._data, self._arrays, start, min(start + step, shard.stop)))
            for start in range(shard.start, shard.stop, step)
        ]
        blocks = {name: np.concatenate([part[name] for part in parts]) for name in self._trial}
        writer.write(shard, **blocks)
        return int((blocks["indices"] >= 0).sum())

    def _encode(self, rows: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> dict[str, np.ndarray[Any, Any]]:
        x = torch.from_numpy(np.ascontiguousarray(rows)).to(self._device, self._model.torch_dtype)
        found = infer(self._model, self._params, Batch(x), self._job.wanted, keep=self._job.keep)
        if self._job.coder:
            codes = Codes(found["indices"], found["values"])
            self.squares[0] += float(squared_errors(x, self._params["W"], codes).double().sum())
            self.squares[1] += float(x.double().square().sum())
        return {name: value.cpu().numpy() for name, value in found.items()}


def check_fits(dictionary: Dictionary, data: Dataset) -> None:
    """JobError where the dictionary is for rows of another length, of other arrays, or without missing values."""
    found, dim = widths(data, dictionary.model.encode_arrays)[0], dictionary.model.input_dim(dictionary.params)
    if found != dim:
        raise JobError(
            f"dictionary {dictionary.ref} is for rows of {dim} dimensions, but data set {data.uri!r} has {found}"
        )
    check_complete(data, dictionary.model)


def check_groups(together: int, data: Dataset) -> None:
    """JobError where rows that are coded together would lie in two shards."""
    if data.shard_rows % together and data.shard_rows < data.rows:
        raise JobError(
            f"coder.group={together}: shards of {data.shard_rows:,} rows are not whole groups; make the data set with "
            f"--shard-rows {max(1, data.shard_rows // together) * together}"
        )


def check_complete(data: Dataset, model: Model) -> None:
    """JobError where rows have missing values and the model needs them complete."""
    if data.missing and not model.accepts_missing:
        raise JobError(
            f"data set {data.uri!r} has missing values, which {_called(model)} counts as errors: bsc, tsc, dsc, gsc, "
            "mca and mmca accept them, with --missing (encode, without a coder) or --set model.missing=true (learn)"
        )


def _called(model: Model) -> str:
    return "a coder" if isinstance(model, Given) else name_of(model)


def infer(
    model: Model, params: Params, batch: Batch, wanted: Wanted, *, keep: int | None = None
) -> dict[str, torch.Tensor]:
    """The codes, of each row at most the `keep` largest entries, and what is wanted beside them, by array.

    The reconstruction is that of the entries that are kept where a model has no posterior, which knows of more.

    Raises:
        ModelError: the model cannot give it.
    """
    if wanted.plain:
        codes = model.encode(params, batch)
        found = {"indices": codes.indices, "values": codes.values}
    else:
        found = model.infer(params, batch, wanted)
    if keep is not None and keep < found["indices"].shape[1]:
        best = found["values"].abs().topk(keep, dim=1).indices
        found |= {name: found[name].gather(1, best) for name in ("indices", "values")}
        if "reconstruction" in found and type(model).infer is Model.infer:
            kept = model.reconstruct(params, Codes(found["indices"], found["values"]))
            found["reconstruction"] = kept.to(found["reconstruction"].dtype)
    return found
