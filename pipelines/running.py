"""How a command runs a job: as a Prefect flow where there is an API, plainly where there is none; Ctrl-C and SIGTERM
end its workers either way."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from .connection import Api, find_api, refusal, use
from .console import say
from .errors import Cancelled, PipelineError
from .reporter import Console, Reporter

if TYPE_CHECKING:
    from pydantic import BaseModel

Program = Literal["ingest", "harvest", "learn", "encode", "denoise", "interpret"]
PROGRAMS: tuple[Program, ...] = get_args(Program)
UI_HINT = "(no Prefect server is running; `sparsefleet up` starts one with a UI)"


def run(program: Program, job: BaseModel, *, title: str, flow: bool, again: str) -> Any:
    """Run `job` here and show its progress; returns what the plain function returns.

    Args:
        program: which function or flow.
        job: its job.
        title: what the progress bar says.
        flow: run it as a Prefect flow where there is an API.
        again: what to do after an interruption, one sentence; {run} in it becomes the run's id.

    Raises:
        click.Abort: interrupted; `again` has been said.
        Cancelled: somebody cancelled the flow run.
    """
    api = find_api() if flow else None
    note = UI_HINT if flow and api is None else ""
    with Console(title, note) as console, _ending(again, console):
        return _as_flow(api, program, job, console) if api else _plainly(program)(job, console)


def _plainly(program: Program) -> Callable[[Any, Reporter], Any]:
    from importlib import import_module

    module = {
        "ingest": "ingesting",
        "harvest": "harvesting",
        "learn": "learning",
        "encode": "encoding",
        "denoise": "denoising",
        "interpret": "interpreting",
    }[program]
    return getattr(import_module(f"sparsefleet.pipelines.{module}"), program)


def _as_flow(api: Api, program: Program, job: BaseModel, console: Reporter) -> Any:
    use(api)
    import httpx
    from prefect import tags
    from prefect.exceptions import CancelledRun, PrefectHTTPStatusError

    from . import flows

    results: list[Any] = []
    listening, waiting = flows.LISTENER.set(console), flows.DONE.set(results)
    try:
        with tags(*tags_of(job)):
            return getattr(flows, program)(params=job)
    except CancelledRun as err:
        raise Cancelled(str(err)) from None
    except PrefectHTTPStatusError as err:
        raise PipelineError(f"the Prefect server at {api.url} {refusal(err)}") from err
    except httpx.TransportError as err:
        say(f"the Prefect server at {api.url} went away ({type(err).__name__}); going on without it")
        # What the workers did is in the store: the plain call continues there.
        return results[0] if results else _plainly(program)(job, console)
    finally:
        flows.LISTENER.reset(listening)
        flows.DONE.reset(waiting)


def run_name(program: Program, job: Any) -> str:
    """What a flow run is called."""
    if program == "learn":
        return f"{job.name}-{job.model}-H{job.atoms}-seed{job.seed}"
    place = getattr(job, "dictionary", None) or getattr(job, "out", "")
    return f"{program}-{place.rstrip('/').rpartition('/')[2]}"


def tags_of(job: BaseModel) -> list[str]:
    """What a list of runs is searched by: the model and the data set."""
    found = [getattr(job, "model", None), getattr(job, "dictionary", None), getattr(job, "data", None)]
    return [str(tag).rstrip("/").rpartition("/")[2] for tag in found if tag]


@contextmanager
def _ending(again: str, console: Console) -> Generator[None]:
    """SIGTERM ends the run as Ctrl-C does: by an exception, so that every process started is ended."""

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        console.stop()
        # What the storage libraries were reading just then, their event loop would lament at exit.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        say(
            "interrupted"
            + (f"; {again.replace('{run}', console.run_id)}" if console.run_id else ", nothing was done yet")
        )
        raise click.Abort from None
    finally:
        signal.signal(signal.SIGTERM, before)
