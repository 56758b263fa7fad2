"""`sparsefleet models [NAME]`."""

from __future__ import annotations

from typing import Any

import click

from ..console import JSON, emit, pairs, say, table


@click.command()
@click.argument("name", required=False)
@click.option(
    "--module-path",
    type=click.Path(),
    help="Folder that holds a model of your own (one called module:Class); by default the current one.",
)
@JSON
def command(name: str | None, module_path: str | None, as_json: bool) -> None:
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
        _show(name, module_path, as_json)


def _list(as_json: bool) -> None:
    from ...models import MODELS, load_model_class
    from ..flags import first_line

    found = {name: first_line(load_model_class(name)) for name in MODELS}

    def people() -> None:
        table(("model", "what it is"), list(found.items()))
        say("next: sparsefleet models bsc")

    emit(found, as_json, people)


def _show(name: str, module_path: str | None, as_json: bool) -> None:
    from ...models import load_model_class
    from ..flags import first_line, settings_of
    from ..paths import make_importable

    make_importable(module_path)
    cls = load_model_class(name)
    schedule = cls(atoms=100).schedule()
    settings = settings_of(cls, without=("atoms", "dtype"))
    facts: dict[str, Any] = {
        "name": name,
        "about": first_line(cls),
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
