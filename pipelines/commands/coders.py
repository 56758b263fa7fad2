"""`sparsefleet coders [NAME]`."""

from __future__ import annotations

from typing import Any

import click

from ..console import JSON, emit, say, table


@click.command()
@click.argument("name", required=False)
@JSON
def command(name: str | None, as_json: bool) -> None:
    """List the coders (ways to encode under any dictionary), or show one coder's settings.

    \b
    Examples:
      sparsefleet coders
      sparsefleet coders omp
    """
    if name is None:
        _list(as_json)
    else:
        _show(name, as_json)


def _list(as_json: bool) -> None:
    from ...models.pursuit import CODERS
    from ..flags import first_line

    found = {name: first_line(cls) for name, cls in CODERS.items()}

    def people() -> None:
        table(("coder", "what it is"), list(found.items()))
        say("next: sparsefleet coders omp")

    emit(found, as_json, people)


def _show(name: str, as_json: bool) -> None:
    from ...models.pursuit import load_coder_class
    from ..flags import first_line, settings_of

    cls = load_coder_class(name)
    facts: dict[str, Any] = {"name": name, "about": first_line(cls), "settings": settings_of(cls)}

    def people() -> None:
        click.echo(f"{name}: {facts['about']}\n")
        rows = [(f"--set coder.{s['name']}", s["type"], s["default"], s["help"]) for s in facts["settings"]]
        table(("setting", "type", "default", "meaning"), rows)

    emit(facts, as_json, people)
