"""`sparsefleet status [RUN]`."""

from __future__ import annotations

from typing import Any

import click

from ..connection import client, find_api
from ..console import JSON, STORE, duration, emit, pairs, say, table


@click.command()
@click.argument("run", required=False)
@click.option("--limit", default=20, show_default=True, help="Show so many runs.")
@STORE
@JSON
def command(run: str | None, limit: int, store: str, as_json: bool) -> None:
    """Show the newest flow runs and what is unfinished in the store; or one run (name, id, beginning of an id)."""
    if run is not None:
        _one(run, as_json)
        return
    flows, open_runs = _flow_runs(limit), _unfinished(store)

    def show() -> None:
        if flows is None:
            say("(no Prefect server is running; `sparsefleet up` starts one)")
        else:
            rows = [
                (r["id"][:8], r["name"], r["state"], _percent(r["progress"]), duration(r["seconds"])) for r in flows
            ]
            table(("run", "name", "state", "done", "time"), rows, empty="no flow run yet")
        if open_runs:
            click.echo(f"\nunfinished in {store}")
            rows = [(r["run"], r["name"], r["model"], r["step"], r["written"]) for r in open_runs]
            table(("run", "name", "model", "updates", "last commit"), rows)
            say(f"next: sparsefleet resume {open_runs[0]['run']} --store {store}")

    emit({"flow_runs": flows, "unfinished": open_runs}, as_json, show)


def _one(run: str, as_json: bool) -> None:
    from .. import runs
    from ..connection import need_api

    api = need_api()
    with client(api) as prefect:
        found = runs.find(prefect, run)
        facts: dict[str, Any] = runs.summary(prefect, found) | {
            "time": runs.time_spent(prefect, found),
            "parameters": found.parameters,
            "url": f"{api.ui}/runs/flow-run/{found.id}",
        }

    def show() -> None:
        parameters, spent = facts.pop("parameters").get("params", {}), facts.pop("time")
        pairs(facts | {"progress": _percent(facts["progress"]), "seconds": duration(facts["seconds"])})
        if spent:
            click.echo("what the time goes into")
            table(tuple(spent[0]), [tuple(row.values()) for row in spent])
        click.echo("parameters")
        pairs({f"  {k}": v for k, v in parameters.items() if v not in (None, {}, [], "")})

    emit(facts, as_json, show)


def _flow_runs(limit: int) -> list[dict[str, Any]] | None:
    api = find_api()
    if api is None:
        return None
    from .. import runs

    with client(api) as prefect:
        return [runs.summary(prefect, r) for r in runs.recent(prefect, limit)]


def _unfinished(store: str) -> list[dict[str, Any]]:
    from ...storage import ArtifactStore, NotFound

    try:
        found = ArtifactStore(store, create=False).runs()
    except NotFound:
        return []
    return [
        {
            "run": r.run_id,
            "name": r.job.get("name"),
            "model": r.job.get("model"),
            "step": r.step,
            "written": r.written_at.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        }
        for r in found
    ]


def _percent(progress: float | None) -> str:
    return "-" if progress is None else f"{progress:.0f} %"
