"""`sparsefleet serve`."""

from __future__ import annotations

import click


@click.command()
@click.option("--limit", type=click.IntRange(1), default=1, show_default=True, help="Runs at the same time.")
def command(limit: int) -> None:
    """Serve the flows from this terminal until Ctrl-C: runs made in the UI happen here; no work pool is needed."""
    from ..submitting import serve

    serve(limit)
