"""`sparsefleet cancel RUN`."""

from __future__ import annotations

import click

from ..connection import client, need_api
from ..console import JSON, emit, say


@click.command()
@click.argument("run")
@click.option("--wait", default=30.0, show_default=True, help="Wait so many seconds for its end.")
@JSON
@click.pass_context
def command(ctx: click.Context, run: str, wait: float, as_json: bool) -> None:
    """Cancel a flow run and end its workers. What it committed is kept; `sparsefleet resume` continues it."""
    from .. import runs

    with client(need_api()) as prefect:
        found = runs.cancel(prefect, runs.find(prefect, run), wait)
    ended = runs.is_final(found)
    state = found.state.name if found.state else ""

    def show() -> None:
        click.echo(f"{found.name}: {state}" if ended else f"{found.name} has been asked to end, but has not yet")
        say(f"next: sparsefleet resume {str(found.id)[:8]}")

    emit({"id": str(found.id), "name": found.name, "state": state, "ended": ended}, as_json, show)
    ctx.exit(0 if ended else 1)
