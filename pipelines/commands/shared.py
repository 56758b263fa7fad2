"""What the commands that run jobs have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from ..console import emit, say
from ..flags import save_job
from ..running import Program, run

if TYPE_CHECKING:
    from pydantic import BaseModel

FLOW = click.option(
    "--flow/--no-flow", default=True, help="Run as a Prefect flow where a server runs [default], or never."
)
SUBMIT = click.option("--submit", metavar="POOL", help="Hand the job to this Prefect work pool instead of running it.")
DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Only try: say the plan and work on a few rows, here; nothing is kept."
)


def monitored(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command --metrics-port and --log-format, which hold for all processes of the run."""
    port = click.option(
        "--metrics-port",
        metavar="PORT",
        expose_value=False,
        callback=_set("SPARSEFLEET_METRICS_PORT"),
        help="Serve metrics for Prometheus at this port of this machine (or FIRST-LAST) while the run lasts.",
    )
    form = click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        expose_value=False,
        callback=_set("SPARSEFLEET_LOG"),
        help="Write messages on stderr as text [default] or as JSON lines with the run's id.",
    )
    return port(form(command))


def _set(variable: str) -> Callable[[click.Context, click.Parameter, str | None], None]:
    """An option that is a variable of the environment, so that every process started from here has it."""

    def callback(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
        del context, parameter
        if value is not None:
            os.environ[variable] = value

    return callback


def handed_on(job: BaseModel, given: Mapping[str, Any]) -> bool:
    """Whether --save-job was given; the job is written then, and nothing is left to do."""
    path = given["save_job"]
    if not path:
        return False
    save_job(job, path)
    emit({"job": path}, given["as_json"], lambda: click.echo(f"{path} written; run it with --job {path}"))
    return True


def run_or_submit(program: Program, job: BaseModel, given: Mapping[str, Any], *, title: str, again: str) -> Any:
    """The result of running `job`; None where it was handed to a work pool."""
    pool = given["submit"]
    if not pool:
        return run(program, job, title=title, flow=given["flow"], again=again)
    from dataclasses import asdict

    from ..submitting import submit

    done = submit(program, job, pool)

    def show() -> None:
        click.echo(f"{done.name} submitted to {pool!r}: {done.url}")
        say(f"next: sparsefleet logs -f {done.id[:8]}, sparsefleet cancel {done.id[:8]}")

    emit(asdict(done), given["as_json"], show)
    return None
