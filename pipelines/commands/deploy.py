"""`sparsefleet deploy`."""

from __future__ import annotations

import click

from ..console import JSON, emit, say


@click.command()
@click.option("--pool", default="local", show_default=True, help="The work pool whose workers shall run the flows.")
@JSON
def command(pool: str, as_json: bool) -> None:
    """Register the flows with a work pool, so that the UI offers each as a form."""
    from ..connection import need_api
    from ..running import PROGRAMS
    from ..submitting import register

    api = need_api()
    made = {f"{p}/{pool}": str(register(p, pool, api)) for p in PROGRAMS}

    def show() -> None:
        for name in made:
            click.echo(name)
        say(f"next: {api.ui}/deployments")

    emit(made, as_json, show)
