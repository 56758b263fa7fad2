"""`sparsefleet down`."""

from __future__ import annotations

import click

from ..console import JSON, emit


@click.command()
@JSON
def command(as_json: bool) -> None:
    """Stop the server and the worker that `up` started, and wait for their end."""
    from .. import server

    ended = server.down()
    text = f"stopped the server at {ended.url}" if ended else "nothing was running"
    emit({"stopped": ended is not None}, as_json, lambda: click.echo(text))
