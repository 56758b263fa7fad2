"""`sparsefleet recipes [show NAME]`."""

from __future__ import annotations

import click

from ..console import JSON, emit, pairs, say, table


@click.group(invoke_without_command=True)
@click.pass_context
@JSON
def command(context: click.Context, as_json: bool) -> None:
    """List the recipes: experiments with their data, settings and expected outcome.

    \b
    Examples:
      sparsefleet recipes
      sparsefleet recipes show bars-bsc
      sparsefleet learn --recipe bars-bsc --engine ray --workers 2
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError(f"write --json after the subcommand: recipes {context.invoked_subcommand} … --json")
        return
    from ..recipes import load_recipe, recipe_names

    found = {name: load_recipe(name).about for name in recipe_names()}

    def people() -> None:
        table(("recipe", "what it is"), list(found.items()))
        say("next: sparsefleet recipes show bars-bsc, sparsefleet learn --recipe bars-bsc")

    emit(found, as_json, people)


@command.command()
@click.argument("name")
@JSON
def show(name: str, as_json: bool) -> None:
    """Show a recipe: how its data is made, its job as YAML, what to expect and what was found.

    The YAML is a job file: save it, change it, run it with `sparsefleet learn --job FILE`.
    """
    from ...workers.job import LearnJob
    from ..flags import to_yaml
    from ..recipes import load_recipe

    recipe = load_recipe(name)
    job = LearnJob.parse(recipe.values())

    def people() -> None:
        click.echo(f"# {recipe.name}: {recipe.about}")
        facts = {
            "# paper": recipe.reference,
            "# data": ", ".join(f"{k}={v}" for k, v in recipe.source.items()),
            "# needs": recipe.needs,
            "# then": ", ".join(f"{k}={v}" for k, v in recipe.then.items()),
            "# expected": ", ".join(f"{k} {low:g} to {high:g}" for k, (low, high) in recipe.expect.items()),
        }
        pairs({k: v for k, v in (facts | {f"# {k}": v for k, v in recipe.reported.items()}).items() if v})
        click.echo(to_yaml(job).rstrip())
        say(f"next: sparsefleet learn --recipe {name}")

    emit(recipe.model_dump(mode="json") | {"job": job.to_dict()}, as_json, people)
