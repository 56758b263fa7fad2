"""`sparsefleet models [NAME]`."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from ..console import JSON, emit, pairs, say, table


@click.command()
@click.argument("name", required=False)
@JSON
def command(name: str | None, as_json: bool) -> None:
    """List the models, or show one model's settings.

    \b
    Examples:
      sparsefleet models
      sparsefleet models bsc
      sparsefleet models mymodule:MyModel
    """
    if name is None:
        _list(as_json)
    else:
        _show(name, as_json)


def _list(as_json: bool) -> None:
    from ...models import MODELS, load_model_class

    found = {name: _first_line(load_model_class(name)) for name in MODELS}

    def people() -> None:
        table(("model", "what it is"), list(found.items()))
        say("next: sparsefleet models bsc")

    emit(found, as_json, people)


def _show(name: str, as_json: bool) -> None:
    from ...models import load_model_class
    from ..paths import make_importable

    make_importable(None)
    cls = load_model_class(name)
    schedule = cls(atoms=100).schedule()
    settings = _settings(cls)
    facts: dict[str, Any] = {
        "name": name,
        "about": _first_line(cls),
        "settings": settings,
        "schedule": schedule.to_dict(),
    }

    def people() -> None:
        click.echo(f"{name}: {facts['about']}\n")
        rows = [(f"--set model.{s['name']}", s["type"], s["default"], s["help"]) for s in settings]
        table(("setting", "type", "default", "meaning"), rows, empty="no settings of its own")
        click.echo("\nschedule")
        ramps = {f"  {n}": " ".join(f"{f:.2g}:{v:g}" for f, v in r) for n, r in schedule.ramps.items()}
        pairs(
            {
                "  passes": schedule.passes,
                "  rows at once": schedule.batch_rows,
                "  updated every": schedule.update_every,
            }
        )
        pairs(ramps)
        others = sorted(set(cls.ramp_names) - set(schedule.ramps))
        click.echo(
            f"  change with --set schedule.NAME=[[fraction, value], …]; also known: {', '.join(others) or 'none'}"
        )

    emit(facts, as_json, people)


def _settings(cls: type) -> list[dict[str, Any]]:
    from ..flags import field_docs

    docs = field_docs(cls)
    found: list[dict[str, Any]] = []
    for f in dataclasses.fields(cls):
        if f.name in ("atoms", "dtype"):
            continue
        if dataclasses.is_dataclass(f.default):
            found += [{**s, "name": f"{f.name}.{s['name']}"} for s in _settings(type(f.default))]
            continue
        kind = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
        default = None if f.default is dataclasses.MISSING else f.default
        found.append({"name": f.name, "type": kind, "default": default, "help": docs.get(f.name, "")})
    return found


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]
