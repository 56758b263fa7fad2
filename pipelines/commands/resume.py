"""`sparsefleet resume RUN`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ..connection import client, find_api
from ..console import JSON, STORE, duration, emit, say
from .shared import FLOW, monitored

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ..running import Program


@click.command()
@click.argument("run")
@STORE
@FLOW
@monitored
@JSON
def command(run: str, store: str, flow: bool, as_json: bool) -> None:
    """Continue a run that did not finish.

    RUN is a run of the store (as `sparsefleet status` lists them), which continues here, or a flow run (name, id or
    beginning of an id): one that was submitted is handed to its workers again, another one continues here.
    """
    job = _from_store(run, store)
    if job is not None:
        _continue("learn", job, flow, as_json)
        return
    _from_prefect(run, flow, as_json)


def _from_store(run: str, store: str) -> dict[str, Any] | None:
    from ...storage import ArtifactStore, NotFound

    try:
        found = ArtifactStore(store, create=False).runs()
    except NotFound:
        return None
    return next((r.job | {"store": store} for r in found if r.run_id == run), None)


def _from_prefect(run: str, flow: bool, as_json: bool) -> None:
    from .. import runs
    from ..errors import PipelineError
    from ..running import PROGRAMS

    api = find_api()
    if api is None:
        raise PipelineError(f"no unfinished run {run!r} in this store, and no Prefect server is running to ask")
    with client(api) as prefect:
        found = runs.find(prefect, run)
        program = prefect.read_flow(found.flow_id).name
        if program not in PROGRAMS:
            raise PipelineError(f"run {found.name!r} is one of the flow {program!r}, which is none of sparsefleet's")
        if found.deployment_id is not None:
            if wait := runs.unsettled_seconds(found, datetime.now(UTC)):
                say(
                    f"{found.name} has just crashed; handing it over in {wait:.0f} s, when its worker has noticed too, "
                    f"and watching it for up to {runs.LATE_SECONDS:.0f} s until it begins"
                )
            runs.retry(prefect, found)
    if found.deployment_id is None:
        if found.state is not None and found.state.is_completed():
            raise PipelineError(f"run {found.name!r} has completed; there is nothing to resume")
        _continue(program, found.parameters["params"], flow, as_json)
        return
    emit(
        {"id": str(found.id), "name": found.name, "submitted": True},
        as_json,
        lambda: click.echo(f"{found.name} waits for a worker; sparsefleet logs -f {str(found.id)[:8]}"),
    )


def _job_class(program: Program, values: dict[str, Any]) -> type[Any]:
    from ...storage.ingest import INGESTS
    from ...workers.activations.job import HarvestJob
    from ...workers.job import EncodeJob, LearnJob
    from ..denoising import DenoiseJob
    from ..interpreting import InterpretJob

    if program == "ingest":
        return INGESTS[values["kind"]].job
    jobs = {"harvest": HarvestJob, "learn": LearnJob, "encode": EncodeJob, "denoise": DenoiseJob}
    return (jobs | {"interpret": InterpretJob})[program]


def _continue(program: Program, values: dict[str, Any], flow: bool, as_json: bool) -> None:
    from ..flags import parse_job
    from ..running import run

    job: BaseModel = parse_job(_job_class(program, values), values)
    name = getattr(job, "name", program)
    result = run(program, job, title=name, flow=flow, again="resume it again to continue")

    def show() -> None:
        facts = result.to_dict()
        click.echo(
            f"{facts.get('version') or facts.get('out') or facts.get('uri')} finished, {duration(facts['seconds'])}"
        )
        say("next: sparsefleet status")

    emit(result.to_dict(), as_json, show)
