"""`sparsefleet logs RUN [-f]`."""

from __future__ import annotations

import json
import logging

import click

from ..connection import client, need_api


@click.command()
@click.argument("run")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has ended.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
def command(run: str, follow: bool, as_json: bool) -> None:
    """Show the log of a flow run (name, id or beginning of an id)."""
    from .. import runs

    with client(need_api()) as prefect:
        for entry in runs.log(prefect, runs.find(prefect, run), follow=follow):
            when, level = entry.timestamp, logging.getLevelName(entry.level)
            if as_json:
                click.echo(json.dumps({"time": when.isoformat(), "level": level, "message": entry.message}))
            else:
                click.echo(f"{when.astimezone():%H:%M:%S}  {level.lower():7}  {entry.message}")
