"""`sparsefleet up`."""

from __future__ import annotations

import click

from ..console import JSON, emit, say


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; other machines need yours.")
@click.option("--port", type=int, help="By default 4200, or the next free port.")
@click.option("--worker/--no-worker", default=True, help="Also start a worker for the work pool 'local'.")
@click.option("--show-password", is_flag=True, help="Say what the login page of the UI asks for.")
@JSON
def command(host: str, port: int | None, worker: bool, show_password: bool, as_json: bool) -> None:
    """Start the local Prefect server with its UI, and a worker; do nothing if they run.

    It listens on this machine only, asks for a password (commands of yours know it), keeps its database in its own
    folder and tells nobody. From then on, `ingest`, `learn`, `encode` and `denoise` run as flows that the UI shows.
    """
    from .. import password, server
    from ..connection import Api
    from ..running import PROGRAMS
    from ..submitting import register

    if host not in ("127.0.0.1", "localhost", "::1"):
        say(
            f"warning: who reaches {host} and has the password can run flows here, and HTTP does not hide it on its way"
        )
    before = server.describe(server.running())
    if not before["running"]:
        say("starting the Prefect server (the first time takes a little longer) …")
    local = server.up(host, port, worker=worker)
    if worker and "worker" not in before.get("processes", ()):
        for program in PROGRAMS:
            register(program, server.POOL, Api(local.api, local.home))

    shown = {"password": password.read(server.state_folder())} if show_password else {}

    def show() -> None:
        click.echo(f"UI: {local.url}")
        click.echo(f"its password: {shown.get('password', 'sparsefleet up --show-password')}")
        say("log in there once; links to a run's page work from then on")
        say("next: sparsefleet learn … (shown in the UI), or with --submit local; sparsefleet down stops it")

    emit(server.describe(local) | shown, as_json, show)
