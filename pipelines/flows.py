"""The flows that Prefect runs: `ingest`, `harvest`, `learn`, `encode`, `denoise` and `interpret`, each of one typed job
that the UI shows as a form.

They add a page in the UI to the functions of learning.py, encoding.py, denoising.py, harvesting.py, ingesting.py
and interpreting.py, where the work is done.
(No postponed annotations in this file: Prefect reads the flows' signatures.)
"""

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Cancelled as CancelledState
from prefect.utilities.urls import url_for

from ..storage import ArtifactStore, open_dataset
from ..storage.ingest import IngestJob
from ..workers.activations.job import HarvestJob
from ..workers.engines.patience import patiently
from ..workers.job import EncodeJob, LearnJob
from . import denoising, encoding, harvesting, ingesting, interpreting, learning
from .console import duration, say
from .denoising import DenoiseJob, DenoiseResult
from .encoding import EncodeResult
from .errors import Cancelled
from .harvesting import HarvestResult
from .ingesting import IngestResult
from .interpreting import InterpretJob, InterpretResult
from .learning import Fit, LearnResult
from .prefect_reporter import Page, history_rows, metrics_markdown, pictures_markdown
from .reporter import Reporter, several, silent
from .running import Program, run_name

LISTENER: ContextVar[Reporter] = ContextVar("LISTENER", default=silent)
"""Who else listens to a run: the progress bar of the terminal that started it."""
DONE: ContextVar[list[Any] | None] = ContextVar("DONE", default=None)
"""Takes a flow's result as soon as it is there: what comes after it is only the page, which needs the server."""
P = ParamSpec("P")
R = TypeVar("R")


def name_of(program: Program) -> str:
    """The name of the flow run that is about to start."""
    return run_name(program, flow_run.parameters["params"])


def cancellable(fn: Callable[P, R]) -> Callable[P, R]:
    """A flow's function that ends in the state Cancelled where somebody cancelled it and no worker ends the process."""

    @wraps(fn)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return fn(*args, **kwargs)
        except Cancelled as err:
            # Prefect takes a returned state as the run's own.
            return cast(R, CancelledState(message=str(err)))

    return wrapped


@flow(name="learn", flow_run_name=lambda: name_of("learn"))
@cancellable
def learn(params: LearnJob) -> LearnResult:
    """Learn a dictionary from a data set and publish it as a version. Run again, it goes on from the last commit."""
    job = learning.check(params)
    with page(f"{job.name}: {job.model}, {job.atoms} atoms", lambda run_id: drawn(job, run_id)) as shown:
        done = fit(job, shown)
        result = publish(job, done)
        report(result, shown)
    return result


@flow(name="encode", flow_run_name=lambda: name_of("encode"))
@cancellable
def encode(params: EncodeJob) -> EncodeResult:
    """Compute sparse codes of a data set under a published dictionary."""
    job = encoding.check(params)
    with page(f"codes under {job.dictionary}", lambda _: {}) as shown:
        done = fit_codes(job, shown)
        result = finish(job, done)
        report_codes(result, shown)
    return result


@flow(name="denoise", flow_run_name=lambda: name_of("denoise"))
@cancellable
def denoise(params: DenoiseJob) -> DenoiseResult:
    """Take noise from a photograph, or fill its missing pixels, with a published dictionary of patches."""
    job = denoising.check(params)
    with (
        page(f"{os.path.basename(job.out)} by {job.dictionary}", lambda _: {}) as shown,
        denoising.workplace(job) as folder,
    ):
        patches = cut(job, folder)
        done = fit_codes(patches, shown)
        result = merge(job, folder, done)
        report_photo(result, shown)
    return result


@flow(name="ingest", flow_run_name=lambda: name_of("ingest"))
@cancellable
def ingest(params: IngestJob) -> IngestResult:
    """Turn photographs, arrays, sounds or series into a data set, or draw one from a model."""
    with page(f"data set {os.path.basename(params.out)}", lambda _: {}) as shown:
        result = read_sources(params, shown)
        report_data(result, shown)
    return result


@flow(name="harvest", flow_run_name=lambda: name_of("harvest"))
@cancellable
def harvest(params: HarvestJob) -> HarvestResult:
    """Write what passes through a transformer while it reads texts, as data sets to learn dictionaries from."""
    job = harvesting.check(params)
    with page(f"activations of {os.path.basename(job.model)}", lambda _: {}) as shown:
        done = read_activations(job, shown)
        result = gather(job, done)
        report_activations(result, shown)
    return result


@flow(name="interpret", flow_run_name=lambda: name_of("interpret"))
@cancellable
def interpret(params: InterpretJob) -> InterpretResult:
    """Judge a sparse autoencoder by activations, and show what its latents answer to, in one HTML file."""
    with page(f"{params.dictionary} by {os.path.basename(params.data)}", lambda _: {}) as shown:
        result = judge(params, shown)
        report_judgement(result, shown)
    return result


# -- tasks: one a noun; none is cached, because what they make lies in a store --------------------------------------


@task(name="fit", cache_policy=NO_CACHE)
def fit(job: LearnJob, shown: Page) -> Fit:
    """The workers add up statistics and update until the schedule ends."""
    return learning.best_fit(job, several(shown, LISTENER.get()))


@task(name="publish", cache_policy=NO_CACHE)
def publish(job: LearnJob, done: Fit) -> LearnResult:
    """The last commit becomes a version."""
    return kept(learning.publish(job, done))


@task(name="report", cache_policy=NO_CACHE)
def report(result: LearnResult, shown: Page) -> None:
    """The final pictures and numbers on the run's page."""
    history = patiently(lambda: ArtifactStore(result.store).load(result.ref).history)
    link = result.store if "://" in result.store else f"file://{result.store}"
    shown.finish(
        history_rows(history),
        f"# [{result.ref}]({link})\n\n{result.fit.step} updates in {duration(result.fit.seconds)}. "
        f"`sparsefleet artifacts show {result.ref} --store {result.store}`\n\n"
        f"{metrics_markdown(result.fit.metrics)}{pictures_markdown(result.figures)}",
    )


@task(name="encode", cache_policy=NO_CACHE)
def fit_codes(job: EncodeJob, shown: Page) -> Fit:
    """The workers encode shard by shard."""
    return learning.fit(job, several(shown, LISTENER.get()), "encode")


@task(name="finish", cache_policy=NO_CACHE)
def finish(job: EncodeJob, done: Fit) -> EncodeResult:
    """The codes are opened and looked at."""
    return kept(encoding.finish(job, done))


@task(name="report", cache_policy=NO_CACHE)
def report_codes(result: EncodeResult, shown: Page) -> None:
    """What was written, on the run's page."""
    text = f"# Codes under {result.dictionary}\n\n{result.rows:,} rows in `{result.out}`\n\n"
    shown.finish(None, text + metrics_markdown(result.fit.metrics) + pictures_markdown(result.figures))


@task(name="cut", cache_policy=NO_CACHE)
def cut(job: DenoiseJob, folder: str) -> EncodeJob:
    """The photograph becomes a data set of all its patches."""
    return denoising.cut(job, folder)


@task(name="merge", cache_policy=NO_CACHE)
def merge(job: DenoiseJob, folder: str, done: Fit) -> DenoiseResult:
    """The patches' reconstructions become a photograph."""
    return kept(denoising.merge(job, folder, done))


@task(name="report", cache_policy=NO_CACHE)
def report_photo(result: DenoiseResult, shown: Page) -> None:
    """Before and after, on the run's page."""
    text = (
        f"# `{result.out}`\n\n{result.patches:,} patches under {result.dictionary}; before, after (and as it was).\n\n"
    )
    shown.finish(None, text + metrics_markdown(result.metrics) + pictures_markdown(result.figures))


@task(name="harvest", cache_policy=NO_CACHE)
def read_activations(job: HarvestJob, shown: Page) -> Fit:
    """The workers read the texts shard by shard."""
    return learning.fit(job, several(shown, LISTENER.get()), "harvest")


@task(name="finish", cache_policy=NO_CACHE)
def gather(job: HarvestJob, done: Fit) -> HarvestResult:
    """The data sets are opened and looked at."""
    return kept(harvesting.finish(job, done))


@task(name="report", cache_policy=NO_CACHE)
def report_activations(result: HarvestResult, shown: Page) -> None:
    """What was written, on the run's page."""
    made = "".join(f"- `{out}`: {result.rows:,} rows of {dim}\n" for out, dim in zip(result.outs, result.dims))
    shown.finish(None, f"# Activations\n\n{made}\n{metrics_markdown(result.fit.metrics)}")


@task(name="interpret", cache_policy=NO_CACHE)
def judge(job: InterpretJob, shown: Page) -> InterpretResult:
    """All rows are coded, added up, and the strongest of every latent kept."""
    return kept(interpreting.interpret(job, several(shown, LISTENER.get())))


@task(name="report", cache_policy=NO_CACHE)
def report_judgement(result: InterpretResult, shown: Page) -> None:
    """The numbers, on the run's page."""
    note = f"Note: {result.note}.\n\n" if result.note else ""
    shown.finish(None, f"# {result.dictionary}\n\n`{result.out}`\n\n{note}{metrics_markdown(result.metrics)}")


@task(name="ingest", cache_policy=NO_CACHE)
def read_sources(job: IngestJob, shown: Page) -> IngestResult:
    """The sources become whole shards."""
    return kept(ingesting.ingest(job, several(shown, LISTENER.get())))


@task(name="report", cache_policy=NO_CACHE)
def report_data(result: IngestResult, shown: Page) -> None:
    """What was made, on the run's page."""
    shown.finish(None, f"# Data set\n\n{result.rows:,} rows of {result.dim} ({result.dtype}) in `{result.uri}`\n")


def kept(result: R) -> R:
    """`result`, also handed to whoever started this flow here."""
    done = DONE.get()
    if done is not None:
        done.append(result)
    return result


# -- the page -------------------------------------------------------------------------------------------------------


@contextmanager
def page(title: str, draw: Callable[[str], Mapping[str, bytes]]) -> Generator[Page]:
    """The page of the flow run that is running."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    run = context.flow_run
    if LISTENER.get() is not silent:
        say(f"watch it at {url_for('flow-run', run.id)}")
    with (
        get_client(sync_client=True) as client,
        Page(title, draw, client, UUID(str(run.id)), get_run_logger(), watch_cancel=run.deployment_id is None) as shown,
    ):
        yield shown


def drawn(job: LearnJob, run_id: str) -> dict[str, bytes]:
    """Pictures of what `run_id` committed last."""
    run = ArtifactStore(job.store, create=False).run(run_id)
    found = run.latest()
    shown = learning.visible(job, run, found) if found else {}
    return learning.pictures(job, open_dataset(job.data), shown, found.history) if found else {}
