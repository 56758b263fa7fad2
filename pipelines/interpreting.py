"""Judging a sparse autoencoder by activations: numbers, and what its latents answer to. Plain functions; flows.py wraps
them for Prefect."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..models import Batch, Codes
from ..models.autoencoders.autoencoder import Autoencoder
from ..models.autoencoders.measures import Evaluation, evaluate, summary
from ..models.autoencoders.probing import Probed
from ..storage import ArtifactStore, Dataset, open_dataset
from ..storage.artifacts.export import write_files
from ..workers.activations import hosts
from ..workers.activations.harvesting import read
from ..workers.activations.job import HarvestJob
from ..workers.activations.splicing import Change, losses, recovered
from ..workers.activations.taps import Tap
from ..workers.columns import read_columns, widths
from ..workers.errors import JobError
from ..workers.job import EncodeJob
from ..workers.progress import Progress
from ..workers.start import Dictionary, load_dictionary
from .examples import Strongest, with_contexts
from .ground_truth import GroundTruth, known
from .labels import check_form, labels_of, not_held
from .paths import absolute, make_importable
from .phases import begin
from .probing import Passages, Pooling
from .reporter import Reporter, silent
from .steering import Steering, steering

BATCH_ROWS = 4096
Also = Callable[[int, torch.Tensor, Codes], None]
"""Takes the number of the first row of a batch, its rows [n, D] and their codes."""


def nothing(start: int, x: torch.Tensor, codes: Codes) -> None:
    """An `Also` that does nothing."""


class InterpretJob(BaseModel):
    """Judge a sparse autoencoder by a data set of activations, and show what its latents answer to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(min_length=1, description="URI of the data set of activations; best of other texts than learning")
    dictionary: str = Field(min_length=1, description="the dictionary: NAME, NAME@VERSION or NAME@ALIAS")
    out: str = Field(min_length=1, description="HTML file to write; it needs no other file and no network")
    store: str = Field("./artifacts", min_length=1, description="URI of the artifact store")
    model: str = Field(
        "", description="the model that the activations are of, as in harvest: to show tokens as text and for --texts"
    )
    texts: list[str] = Field(
        default_factory=list[str], description="texts to state the loss recovered on: files, folders or patterns"
    )
    tokens: int = Field(8192, ge=1, description="tokens of these texts that are used")
    rows: int | None = Field(None, ge=1, description="use only the first rows of the data set")
    atoms: int = Field(64, ge=0, le=100_000, description="latents to show, spread evenly from rare to frequent ones")
    examples: int = Field(8, ge=1, le=1000, description="rows to show of each")
    labels: str = Field(
        "",
        description="classes of texts, to probe how well 1, 2 and 5 latents tell them apart: folders (a text's class "
        "is its folder), or a .csv with the columns document and label",
    )
    steer: int = Field(
        0, ge=0, le=10_000, description="add so many latents to the model, one at a time, and see what it says next"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="cpu or cuda")
    module_path: str | None = Field(
        None,
        description="folder that holds the dictionary's model, if it is one of your own; by default the current one",
    )
    overwrite: bool = Field(False, description="replace an existing report")

    @model_validator(mode="after")
    def _some_need_a_model(self) -> InterpretJob:
        if self.texts and not self.model:
            raise JobError("texts: the loss recovered needs the model as well, as in --model input:smollm2")
        if self.steer and not self.model:
            raise JobError(f"steer={self.steer}: needs the model that is steered, as in --model input:smollm2")
        if self.labels:
            check_form(self.labels)
        return self


@dataclass(frozen=True)
class InterpretResult:
    """A report, and the numbers in it."""

    out: str
    dictionary: str
    rows: int
    metrics: dict[str, float]
    seconds: float
    note: str = ""
    """What to keep in mind about the rows; mostly empty."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


def interpret(job: InterpretJob, reporter: Reporter = silent) -> InterpretResult:
    """Judge an autoencoder and write the report.

    Raises:
        JobError, StorageError: the job cannot be done as it is.
    """
    from .interpret_report import Page, page

    begun = time.monotonic()
    job = check(job)
    data, found = open_dataset(job.data), dictionary_of(job)
    device = torch.device(job.device)
    model = found.model
    assert isinstance(model, Autoencoder)
    params = model.prepare({n: p.to(device) for n, p in found.params.items()})
    found = Dictionary(found.ref, found.snapshot, model, params)
    pooling = pooling_of(job, data, found) if job.labels else None
    truth = None
    if known(data) and model.target is None:
        begin(reporter, f"ground truth: compares {model.atoms:,} latents with the features that made the data")
        truth = GroundTruth(data, model.dictionary(params).cpu().numpy())

    def also(start: int, x: torch.Tensor, codes: Codes) -> None:
        for counting in (pooling, truth):
            if counting:
                counting.add(start, x, codes)

    sums, strongest = measure(job, data, found, reporter, also)
    metrics = summary(sums) | (truth.numbers() if truth else {})

    @cache
    def network() -> Any:
        path = hosts.find_model(job.model)
        begin(reporter, f"loads {hosts.name_of(job.model, path)}")
        return hosts.load_network(path, device)

    if job.texts:
        metrics |= loss_recovered(job, data, found, sums, network, reporter)
    fired = (sums.positive + sums.negative).cpu().numpy()
    probed = pooling.passages.probe(pooling.pooled, reporter) if pooling else []
    metrics |= pooling.numbers(probed) if pooling else {}
    steered: Steering | None = None
    if job.steer:
        _, tap = taps_of(data, found)
        steered = steering(data, network, tap, params["W_dec"], sums, spread(fired, job.steer), reporter)
        metrics |= steered.numbers()
    shown: set[int] = {*spread(fired, job.atoms), *named(probed, fired), *(steered.atoms if steered else ())}
    begin(reporter, f"contexts: looks up the strongest rows of {len(shown):,} latents")
    examples = with_contexts(data, strongest, sorted(shown), lambda rows: codes_of(data, found, rows, reporter))
    begin(reporter, f"writes {job.out}")
    tokenizer = hosts.load_tokenizer(hosts.find_model(job.model)) if job.model else None
    spell = (lambda token: str(tokenizer.decode([token]))) if tokenizer else (lambda token: f" {token}")
    note = "; ".join(notes_on(job, data))
    content = page(Page(found.ref, data, metrics, sums, examples, spell, probed, steered, note))
    write_files({Path(job.out): content.encode()}, overwrite=job.overwrite)
    seconds = time.monotonic() - begun
    rows = int(sums.rows)
    reporter(Progress(kind="done", step=rows, steps=rows, seconds=seconds, message="written", metrics=metrics))
    return InterpretResult(job.out, found.ref, rows, metrics, seconds, note)


def check(job: InterpretJob) -> InterpretJob:
    """The job with absolute addresses and the dictionary's version pinned, if it can be done.

    Raises:
        JobError, StorageError: it cannot; the message says why.
    """
    job = absolute(job)
    make_importable(job.module_path)
    out = Path(job.out)
    if not out.parent.is_dir():
        raise JobError(f"out={job.out!r}: there is no folder {str(out.parent)!r}")
    if out.is_dir():
        raise JobError(f"out={job.out!r} is a folder: give a file")
    if out.exists() and not job.overwrite:
        raise JobError(f"out={job.out!r} exists: choose another file or pass --overwrite")
    data = open_dataset(job.data)
    if job.model:
        hosts.require_packages()
        check_model(job.model, data)
    if job.labels:
        labels_of(job.labels, data)
    ref = ArtifactStore(job.store, create=False).resolve(job.dictionary).ref
    job = job.model_copy(update={"dictionary": ref})
    found = dictionary_of(job)
    dim, wanted = widths(data, found.model.arrays)[0], found.model.input_dim(found.params)
    if dim != wanted:
        raise JobError(f"dictionary {ref} is for rows of {wanted} dimensions, but data set {data.uri!r} has {dim}")
    if job.texts or job.steer:
        taps_of(data, found)
        check_predicts(job)
    if job.texts and len(found.model.encode_arrays) > 1:
        more = ", ".join(found.model.encode_arrays[1:])
        raise JobError(f"texts: {ref} needs {more} to encode, which texts alone do not give; leave out --texts")
    return job


def check_predicts(job: InterpretJob) -> None:
    """Raises JobError where the job's model predicts no next tokens, and texts or steering need that."""
    path = hosts.find_model(job.model)
    if hosts.predicts_next(path):
        return
    name = hosts.name_of(job.model, path)
    if job.texts:
        raise JobError(f"texts: {name} does not predict next tokens, so it has no loss to recover")
    raise JobError(f"steer: {name} does not predict next tokens, so there is nothing to steer")


def check_model(model: str, data: Dataset) -> None:
    """Raises JobError unless the rows of `data` are activations of `model`."""
    made: Any = data.attributes.get("model")
    if not isinstance(made, dict) or "files" not in made:
        raise JobError(f"model={model!r}: {data.uri!r} was not harvested from any model; leave out --model")
    path = hosts.find_model(model)
    given = hosts.fingerprint(path, hosts.name_of(model, path))
    if given["files"] != made["files"]:
        which = repr(made.get("name"))
        other = f"other files of the name {which}" if made.get("name") == given["name"] else which
        raise JobError(f"model={model!r} is not the one that {data.uri!r} was harvested from: that was {other}")


def notes_on(job: InterpretJob, data: Dataset) -> list[str]:
    """What to keep in mind: that the dictionary was learned from the rows that it is judged by, or from rows of another
    place; and documents of the labels that the data set does not hold."""
    card = ArtifactStore(job.store, create=False).card(job.dictionary)
    found: list[str] = []
    learned_from, row = card["data"] or {}, data.attributes.get("row")
    if learned_from.get("fingerprint") == data.fingerprint:
        found.append(_seen(job, data, card))
    elif learned_from.get("row") and row and learned_from["row"] != row:
        found.append(f"{job.dictionary} was learned from other rows ({learned_from['row']}), and these are {row}")
    absent = not_held(job.labels, data) if job.labels else []
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        found.append(f"{job.labels} names what {data.uri} does not hold: {', '.join(absent[:3])}{more}")
    return found


def _seen(job: InterpretJob, data: Dataset, card: dict[str, Any]) -> str:
    judged, learned = (min(rows or data.rows, data.rows) for rows in (job.rows, card["job"].get("rows")))
    these = "these very rows" if learned >= judged else f"the first {learned:,} of these {judged:,} rows"
    return f"{job.dictionary} was learned from {these}: on rows that it has not seen the numbers may be worse"


def taps_of(data: Dataset, found: Dictionary) -> tuple[Tap, Tap]:
    """Where the rows of a harvest passed, and what the dictionary predicts from them: the same, or, for a transcoder,
    the place of its target.

    Raises:
        JobError: the data set does not say where the transcoder's target passed.
    """
    assert isinstance(found.model, Autoencoder)
    source, target = Tap.parse(data.attributes["module"]), found.model.target
    if target is None:
        return source, source
    module = data.attributes.get(f"{target}_module")
    if module is None:
        raise JobError(
            f"{found.ref} predicts {target!r}, but {data.uri!r} does not say where that passed: harvest it again with "
            "--target"
        )
    return source, Tap.parse(module)


def dictionary_of(job: InterpretJob) -> Dictionary:
    """The autoencoder. JobError where the dictionary is none."""
    found = load_dictionary(
        EncodeJob.parse({"data": job.data, "dictionary": job.dictionary, "store": job.store, "out": "-"})
    )
    if not isinstance(found.model, Autoencoder):
        raise JobError(f"dictionary {found.ref} is no sparse autoencoder, but a {type(found.model).__name__}")
    return found


def measure(
    job: InterpretJob, data: Dataset, found: Dictionary, reporter: Reporter = silent, also: Also = nothing
) -> tuple[Evaluation, Strongest]:
    """The sums over all rows, and every latent's strongest rows; `also` is handed every batch with its codes."""
    assert isinstance(found.model, Autoencoder)
    rows = min(job.rows or data.rows, data.rows)
    strongest = Strongest(found.model.atoms, job.examples)
    total: Evaluation | None = None
    count = begin(reporter, f"reads and codes {rows:,} rows", rows, rows=True)
    for start in range(0, rows, BATCH_ROWS):
        stop = min(start + BATCH_ROWS, rows)
        batch = _batch(job.device, found, read_columns(data, found.model.arrays, start, stop))
        codes = found.model.codes(found.params, batch)
        part = evaluate(found.model, found.params, batch, codes)
        total = part if total is None else total + part
        also(start, batch.x, codes)
        strongest.add(start, codes.indices.cpu().numpy(), codes.values.cpu().numpy())
        count(stop)
    assert total is not None
    return total, strongest


def pooling_of(job: InterpretJob, data: Dataset, found: Dictionary) -> Pooling:
    """Sums by passage, empty as yet. JobError where the job's labels are of none of its rows."""
    assert isinstance(found.model, Autoencoder)
    atoms, dim = found.model.atoms, found.model.input_dim(found.params)
    passages = Passages.find(data, job.labels, min(job.rows or data.rows, data.rows), atoms + dim)
    return Pooling(data, passages, atoms, dim, torch.device(job.device))


def named(probed: list[Probed], fired: NDArray[Any]) -> list[int]:
    """Latents that probes use and that fire."""
    return [latent for found in probed for latent in found.best if fired[latent]]


def loss_recovered(
    job: InterpretJob,
    data: Dataset,
    found: Dictionary,
    sums: Evaluation,
    network: Callable[[], Any],
    reporter: Reporter = silent,
) -> dict[str, float]:
    """Cross-entropies in nats: of the network itself, and with the rows of `job.texts` replaced by reconstructions, by
    zero and by the mean of the data set; and the shares recovered. Of a transcoder: with the rows of its target
    replaced, by what it predicts from its inputs in the same pass, by zero and by their mean.

    `network` loads it.

    Raises:
        JobError: the network computes a transcoder's target before its inputs.
    """
    assert isinstance(found.model, Autoencoder)
    model = found.model
    loaded = network()
    begin(reporter, "cross-entropy: reads the texts")
    about = data.attributes
    source, tap = taps_of(data, found)
    values = {"context": about["context"], "skip": about["skip"], "tokens": job.tokens}
    windows = read(HarvestJob.parse({"model": job.model, "texts": job.texts, "out": "-", **values})).windows
    device = torch.device(job.device)
    mean = (sums.total / sums.rows).to(device)

    def rebuilt(x: torch.Tensor) -> torch.Tensor:
        batch = Batch(x.to(model.torch_dtype))
        return model.reconstruct(found.params, model.codes(found.params, batch))

    changes: dict[str, Change] = {
        "reconstruction": rebuilt,
        "zero": lambda x: torch.zeros_like(mean).expand(len(x), -1),
        "mean": lambda x: mean.expand(len(x), -1),
    }
    message = f"cross-entropy of {windows.rows:,} tokens, as they are and changed"
    count = begin(reporter, message, len(windows.starts))
    got = losses(loaded, tap, windows, changes, device, source=source, count=count)
    return {
        "ce_recovered_zero": recovered(got, without="zero"),
        "ce_recovered_mean": recovered(got, without="mean"),
        **{f"ce_{name}": value for name, value in got.items()},
    }


def spread(fired: NDArray[Any], count: int) -> list[int]:
    """At most `count` of the latents that fire, spread evenly from rare to frequent."""
    alive = np.flatnonzero(fired > 0)
    order = alive[np.argsort(fired[alive], kind="stable")]
    at = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).astype(int))
    return order[at].tolist() if len(order) and count else []


def codes_of(
    data: Dataset, found: Dictionary, rows: NDArray[np.int64], reporter: Reporter = silent
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Indices and values [n, k] of rows, given by number, which rise; every chunk is read once."""
    device = str(found.params["W_dec"].device)
    indices: list[NDArray[Any]] = []
    values: list[NDArray[Any]] = []
    chunks = np.unique(rows // data.chunk_rows)
    count = begin(reporter, f"contexts: codes {len(rows):,} rows", len(chunks))
    for done, chunk in enumerate(chunks, 1):
        start = int(chunk) * data.chunk_rows
        block = read_columns(data, found.model.arrays, start, min(start + data.chunk_rows, data.rows))
        mine = rows[rows // data.chunk_rows == chunk] - start
        codes = found.model.encode(found.params, _batch(device, found, block[mine]))
        indices.append(codes.indices.cpu().numpy())
        values.append(codes.values.cpu().numpy())
        count(done)
    if not indices:
        return np.zeros((0, 1), dtype=np.int32), np.zeros((0, 1))
    return np.concatenate(indices), np.concatenate(values)


def _batch(device: str, found: Dictionary, rows: NDArray[Any]) -> Batch:
    return Batch(torch.from_numpy(np.ascontiguousarray(rows)).to(device, found.model.torch_dtype))
