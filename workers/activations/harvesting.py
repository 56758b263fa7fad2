"""Harvesting: texts through a network, what passes at its sites into whole shards, one data set for each site.

Row r of every data set of a harvest is the same token. Which rows lie in a shard follows from the texts alone; their
order in it is shuffled by (seed, shard), so that a chunk holds tokens from all over its shard.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...storage import DatasetWriter, Shard, StoreConflict, choose_layout, create_dataset, open_writer
from ...storage.texts import find_texts, read_documents, texts_fingerprint
from ..communicator import Communicator
from ..errors import JobError
from ..progress import Progress
from . import hosts
from .job import HarvestJob
from .sites import Site, find_sites
from .taps import Tap, record
from .windows import Inputs, Windows, cut

SHARD_MB = 64
BLOCKS_MB = 512
"""Together the shards of all data sets that a worker fills at once are at most about this large."""
REPORT_SECONDS = 0.5
PLACES = {"token": ((), "int32"), "document": ((), "int32"), "position": ((), "int32")}
"""Arrays that say which token a row is: its id, its document's number, and its number in the document."""


@dataclass(frozen=True)
class Reading:
    """The texts of a harvest, as rank 0 has read them."""

    windows: Windows
    origins: NDArray[np.int32]
    """[documents, 2]: number of the file, and line in it."""


def harvest(job: HarvestJob, comm: Communicator, device: torch.device) -> Generator[Progress, None, None]:
    """Write the activations; shards that are done stay done.

    Raises:
        JobError, StorageError: the job cannot be done as it is.
    """
    begun = time.monotonic()
    yield Progress(kind="start", message="loads the network and reads the texts")
    harvester = Harvester(job, device, comm.broadcast(read(job, comm) if comm.rank == 0 else None))
    if comm.rank == 0:
        harvester.create()
    comm.barrier()
    writers = harvester.open()
    todo = comm.broadcast(sorted({s.index for writer in writers.values() for s in writer.missing()}))
    shards = harvester.shards
    mine = [shards[i] for i in todo[comm.rank :: comm.size]]
    rows = sum(len(shards[i]) for i in todo)
    started, said, done = time.monotonic(), 0.0, 0
    for shard in mine:
        for fresh in harvester.fill(writers, shard):
            comm.check()
            done += fresh
            now = time.monotonic()
            if now - said >= REPORT_SECONDS:
                said = now
                speed = {"tokens_per_second": done * comm.size / (now - started)}
                at = min(done * comm.size, rows)
                yield Progress(kind="step", step=at, steps=rows, metrics=speed, seconds=now - begun)
    total = float(comm.allreduce(torch.tensor([done], dtype=torch.float64))[0])
    if comm.rank == 0:
        for writer in writers.values():
            writer.finish()
    comm.barrier()
    speed = total / max(time.monotonic() - started, 1e-9)
    metrics = {"rows": float(harvester.rows), "tokens_per_second": speed}
    metrics["files_left_out"] = float(harvester.files_left_out()) if comm.rank == 0 else 0.0
    result = {"outs": harvester.outs(), "rows": harvester.rows}
    seconds = time.monotonic() - begun
    yield Progress(kind="done", step=rows, steps=rows, metrics=metrics, seconds=seconds, result=result)


def read(job: HarvestJob, comm: Communicator | None = None) -> Reading:
    """All windows of the job's texts.

    Raises:
        JobError: the texts have no token.
        StorageError: a text cannot be read.
    """
    tokenizer = hosts.load_tokenizer(hosts.find_model(job.model))
    context = hosts.context_of(tokenizer, job.context, job.skip)
    origins: list[tuple[int, int]] = []

    def texts() -> Generator[str]:
        for document in read_documents(find_texts(job.texts)):
            origins.append((document.file, document.line))
            yield document.text

    tokens = hosts.tokenize(tokenizer, texts(), comm.check if comm else lambda: None)
    windows = cut(tokens, context, job.rows)
    if not windows.rows:
        raise JobError(f"texts={', '.join(job.texts)[:100]}: no document has more than skip={context.skip} tokens")
    return Reading(windows, np.array(origins[: len(windows.begins) - 1], dtype=np.int32).reshape(-1, 2))


class Harvester:
    """One worker's part: fills shards of all data sets of a harvest."""

    def __init__(self, job: HarvestJob, device: torch.device, reading: Reading | None) -> None:
        """Raises JobError, as `load_network` and `find_sites`."""
        assert reading is not None
        self._job, self._device = job, device
        self._windows, self._origins = reading.windows, reading.origins
        path = hosts.find_model(job.model)
        name = hosts.name_of(job.model, path)
        self._model = hosts.fingerprint(path, name)
        if job.gradients and not hosts.predicts_next(path):
            raise JobError(f"gradients: {name} does not predict next tokens, so there is no loss to differentiate")
        self._network: Any = hosts.load_network(path, device, job.compute)
        _check_length(self._network, job)
        self._sites = find_sites(self._network, job.site, job.layers)
        targets = find_sites(self._network, [job.target], job.layers) if job.target else []
        self._targets = {site: _target_of(site, targets) for site in self._sites} if targets else {}
        trial = self._record(self._windows.batch(range(min(2, len(self._windows.starts)))))
        self._width = {tap: int(value.shape[-1]) for tap, value in trial[0].items()}
        widest = max(sum(self._row_bytes(site).values()) for site in self._sites)
        shard_mb = min(SHARD_MB, BLOCKS_MB / len(self._sites))
        self._layout = _layout(self.rows, widest, shard_mb, job.batch * self._windows.context.stride)
        self.shards = [
            Shard(i, a, min(a + self._layout[0], self.rows)) for i, a in enumerate(range(0, self.rows, self._layout[0]))
        ]

    @property
    def rows(self) -> int:
        """N, of every data set."""
        return self._windows.rows

    @property
    def documents(self) -> int:
        """Documents that rows come from."""
        return len(self._origins)

    def files_left_out(self) -> int:
        """Files of the texts behind the last one that rows come from, where `tokens` ended the harvest."""
        if self.rows != self._job.rows:
            return 0
        return len(find_texts(self._job.texts)) - 1 - int(self._origins[-1, 0])

    def outs(self) -> list[str]:
        """Where the data sets are, in the order of sites."""
        return [out_of(self._job.out, site, alone=len(self._sites) == 1) for site in self._sites]

    def bytes(self) -> int:
        """Of all data sets together."""
        return self.rows * sum(sum(self._row_bytes(site).values()) for site in self._sites)

    def sites(self) -> list[Site]:
        """What is written."""
        return list(self._sites)

    def create(self) -> None:
        """Lay out the data sets, or continue unfinished ones of the same kind.

        Raises:
            StoreConflict: all of them are finished, or something else is there.
        """
        conflict: StoreConflict | None = None
        ready = 0
        for site, out in zip(self._sites, self.outs()):
            try:
                create_dataset(out, **self._layout_of(site), overwrite=self._job.overwrite)
                ready += 1
            except StoreConflict as err:
                # A harvest that ended between two data sets goes on with the second.
                if not self._is_done(site, out):
                    raise
                conflict = err
        if not ready and conflict is not None:
            raise conflict

    def open(self) -> dict[Site, DatasetWriter]:
        """The data sets that are not finished."""
        return {site: open_writer(out) for site, out in zip(self._sites, self.outs()) if not self._is_done(site, out)}

    def fill(self, writers: dict[Site, DatasetWriter], shard: Shard) -> Generator[int, None, None]:
        """Compute one shard's rows and write them; yields after every batch how many rows it gave.

        Raises:
            JobError: NaN or infinite activations.
        """
        windows = self._windows
        blocks = {site: self._empty(site, len(shard)) for site in writers}
        among = windows.among(shard.start, shard.stop)
        for first in range(among.start, among.stop, self._job.batch):
            batch = range(first, min(first + self._job.batch, among.stop))
            start, stop = int(windows.row_begins[batch.start]), int(windows.row_begins[batch.stop])
            low, high = max(start, shard.start), min(stop, shard.stop)
            inputs = windows.batch(batch)
            found = self._record(inputs)
            for site in writers:
                for name, value in self._arrays(site, found, inputs.rows[low - start : high - start]).items():
                    self._refuse_nonfinite(value, site, name, low)
                    blocks[site][name][low - shard.start : high - shard.start] = value
            yield high - low
        places = windows.places(shard.start, shard.stop)
        document, position = windows.documents(places)
        where = {"token": windows.tokens[places], "document": document, "position": position}
        order = np.random.default_rng([self._job.seed, shard.index]).permutation(len(shard))
        for site, writer in writers.items():
            writer.write(shard, **{name: block[order] for name, block in (blocks[site] | where).items()})

    def measure(self) -> float:
        """Tokens per second of this process, from one batch."""
        batch = range(min(self._job.batch, len(self._windows.starts)))
        inputs = self._windows.batch(batch)
        begun = time.monotonic()
        self._record(inputs)
        return len(inputs.rows) / max(time.monotonic() - begun, 1e-9)

    def _record(self, inputs: Inputs) -> tuple[dict[Tap, Tensor], dict[Tap, Tensor]]:
        """Activations and gradients [B L, D] of a batch, on the device."""
        taps = list(dict.fromkeys(s.tap for s in (*self._sites, *self._targets.values())))
        loss = (lambda given: hosts.next_token_loss(given, inputs.labels)) if self._job.gradients else None
        found = record(self._network, taps, lambda: hosts.feed(self._network, inputs, self._device), loss)
        flat = lambda part: {tap: _flat(tap, value, inputs) for tap, value in part.items()}  # noqa: E731
        return flat(found.activations), flat(found.gradients)

    def _arrays(self, site: Site, found: Any, rows: Tensor) -> dict[str, NDArray[Any]]:
        """Rows of the arrays of one data set."""
        activations, gradients = found
        rows = rows.to(self._device)
        given = {"data": activations[site.tap]}
        if site in self._targets:
            given["outputs"] = activations[self._targets[site].tap]
        if self._job.gradients:
            given["gradients"] = gradients[(self._targets.get(site) or site).tap]
        dtypes = self._dtypes(site)
        return {n: v[rows].to(getattr(torch, dtypes[n])).cpu().numpy() for n, v in given.items()}

    def _dtypes(self, site: Site) -> dict[str, str]:
        """Gradients are small numbers of very different size: half precision would lose the smallest."""
        names = ["data", *(["outputs"] if site in self._targets else []), *(["gradients"] * self._job.gradients)]
        return {name: "float32" if name == "gradients" else self._job.dtype for name in names}

    def _widths(self, site: Site) -> dict[str, int]:
        target = self._width[self._targets[site].tap] if site in self._targets else self._width[site.tap]
        return {name: self._width[site.tap] if name == "data" else target for name in self._dtypes(site)}

    def _row_bytes(self, site: Site) -> dict[str, int]:
        dtypes = self._dtypes(site)
        return {name: width * np.dtype(dtypes[name]).itemsize for name, width in self._widths(site).items()}

    def _empty(self, site: Site, rows: int) -> dict[str, NDArray[Any]]:
        dtypes = self._dtypes(site)
        return {name: np.empty((rows, width), dtype=dtypes[name]) for name, width in self._widths(site).items()}

    def _layout_of(self, site: Site) -> dict[str, Any]:
        dtypes = self._dtypes(site)
        return {
            "rows": self.rows,
            "arrays": {**{n: ((w,), dtypes[n]) for n, w in self._widths(site).items()}, **PLACES},
            "shard_rows": self._layout[0],
            "chunk_rows": self._layout[1],
            "attributes": self._attributes(site),
            "side": {"documents": self._origins},
        }

    def _attributes(self, site: Site) -> dict[str, Any]:
        job, context = self._job, self._windows.context
        more: dict[str, Any] = {}
        if site in self._targets:
            more["outputs"] = f"{self._targets[site].meaning} ({self._targets[site].tap})"
            more["outputs_module"] = str(self._targets[site].tap)
        if job.gradients:
            more["gradients"] = "of the next tokens' summed cross-entropy, in nats"
        return {
            "kind": "activations",
            "row": f"{site.meaning} of {self._model['name']}, one token a row",
            "site": site.name,
            "layer": site.layer,
            "module": str(site.tap),
            **more,
            "model": self._model,
            "texts": texts_fingerprint(find_texts(job.texts)),
            "context": context.length,
            "skip": context.skip,
            "added_tokens": [list(context.prefix), list(context.suffix)],
            "compute": job.compute,
            "seed": job.seed,
        }

    def _is_done(self, site: Site, out: str) -> bool:
        """Whether the finished data set that this harvest makes stands at `out`."""
        from ...storage.layout import make_header
        from ...storage.locations import locate
        from ...storage.reader import read_header

        _, found = read_header(locate(out))
        layout = self._layout_of(site)
        side = layout.pop("side")
        return found.finished and found.fingerprint == make_header(**layout, side=side).fingerprint

    def _refuse_nonfinite(self, value: NDArray[Any], site: Site, name: str, first: int) -> None:
        if np.isfinite(value).all():
            return
        row = first + int(np.flatnonzero(~np.isfinite(value).all(axis=1))[0])
        document, position = self._windows.documents(self._windows.places(row, row + 1))
        what = "are too large for float16 (write them with --dtype float32) or not finite" if (
            value.dtype == np.float16
        ) else "are NaN or infinite: the network itself fails there"  # fmt: skip
        raise JobError(
            f"{name} of {site.label}: activations of token {int(position[0])} of document {int(document[0])} {what}"
        )


def _layout(rows: int, row_bytes: int, shard_mb: float, least: int) -> tuple[int, int]:
    """Rows of a shard and of a chunk. A shard fills at least one batch: the windows at its ends are computed twice, by
    its neighbours too."""
    shard, chunk = choose_layout(rows, row_bytes, shard_mb=shard_mb)
    if shard >= min(least, rows):
        return shard, chunk
    return min(least, rows), min(least, rows)


def out_of(out: str, site: Site, *, alone: bool) -> str:
    """Where the data set of a site lies."""
    if alone:
        return out
    stem, dot, suffix = out.rstrip("/").rpartition(".")
    return f"{stem}-{site.label}.{suffix}" if dot and "/" not in suffix else f"{out.rstrip('/')}-{site.label}"


def _flat(tap: Tap, value: Tensor, inputs: Inputs) -> Tensor:
    batch, length = inputs.ids.shape
    if value.ndim < 3 or value.shape[:2] != (batch, length):
        raise JobError(f"{tap}: {list(value.shape)} passes there, but [{batch}, {length}, …] is needed: a row a token")
    return value.reshape(batch * length, -1)


def _target_of(site: Site, targets: list[Site]) -> Site:
    return next((t for t in targets if t.layer == site.layer), targets[0])


def _check_length(network: Any, job: HarvestJob) -> None:
    limit = getattr(network.config, "max_position_embeddings", None)
    if limit is not None and job.context > limit:
        raise JobError(f"context={job.context}: {job.model} reads at most {limit} tokens at once")
