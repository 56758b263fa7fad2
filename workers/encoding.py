"""One worker's part of encoding: whole shards in, whole shards of codes out."""

from __future__ import annotations

import numpy as np
import torch

from ..models import Batch, Codes
from ..storage import Dataset, DatasetWriter, Shard, create_dataset, open_writer
from .columns import read_columns, widths
from .errors import JobError
from .job import EncodeJob
from .start import Dictionary


class ShardEncoder:
    """Encodes shards of `data` under a dictionary."""

    def __init__(self, job: EncodeJob, data: Dataset, dictionary: Dictionary, device: torch.device) -> None:
        """Raises JobError where the dictionary was learned for rows of another length."""
        self._job, self._data, self._model = job, data, dictionary.model
        self._ref, self._snapshot = dictionary.ref, dictionary.snapshot
        self._device = device
        self._params = {n: p.to(device) for n, p in dictionary.params.items()}
        self._arrays = self._model.encode_arrays
        found = widths(data, self._arrays)
        dim = self._model.input_dim(self._params)
        if found[0] != dim:
            raise JobError(
                f"dictionary {dictionary.ref} is for rows of {dim} dimensions, but data set {data.uri!r} has {found[0]}"
            )
        self._width = self._encode(np.zeros((1, sum(found)), dtype=np.float32)).indices.shape[1]

    def create(self) -> None:
        """Lay out the data set of codes, sharded as the data is; continues an unfinished one of the same kind."""
        width = (self._width,)
        create_dataset(
            self._job.out,
            rows=self._data.rows,
            arrays={"indices": (width, "int32"), "values": (width, self._model.dtype)},
            shard_rows=self._data.shard_rows,
            chunk_rows=self._data.chunk_rows,
            attributes={
                "kind": "codes",
                "atoms": self._model.atoms,
                "dictionary": self._ref,
                "snapshot": self._snapshot,
                "source": {"uri": self._data.uri, "fingerprint": self._data.fingerprint},
            },
            overwrite=self._job.overwrite,
        )

    def open(self) -> DatasetWriter:
        """The laid-out data set of codes, to write shards into."""
        return open_writer(self._job.out)

    def encode_shard(self, writer: DatasetWriter, shard: Shard) -> int:
        """Encode one shard and write it; returns how many entries its codes have."""
        step = self._job.batch_rows
        parts = [
            self._encode(read_columns(self._data, self._arrays, start, min(start + step, shard.stop)))
            for start in range(shard.start, shard.stop, step)
        ]
        indices = torch.cat([p.indices for p in parts]).cpu().numpy()
        values = torch.cat([p.values for p in parts]).cpu().numpy()
        writer.write(shard, indices=indices, values=values)
        return int((indices >= 0).sum())

    def _encode(self, rows: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> Codes:
        x = torch.from_numpy(np.ascontiguousarray(rows)).to(self._device, self._model.torch_dtype)
        codes = self._model.encode(self._params, Batch(x))
        keep = self._job.keep
        if keep is None or keep >= codes.indices.shape[1]:
            return codes
        best = codes.values.abs().topk(keep, dim=1).indices
        return Codes(codes.indices.gather(1, best), codes.values.gather(1, best))
