"""`sparsefleet artifacts import`: results of other programs become versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import JSON, STORE, emit, plain, say

if TYPE_CHECKING:
    from ...storage.artifacts import Version

FOREIGN = ("saelens", "sparsify")
"""Layouts of other programs for sparse autoencoders."""
PROSPER = "prosper"


@click.command("import")
@click.argument("path", type=click.Path())
@click.option("--name", required=True, help="Name of the artifact that it becomes a version of.")
@click.option(
    "--format",
    "kind",
    type=click.Choice([PROSPER, *FOREIGN]),
    help="Whose layout PATH has; a file is taken for a result of ProSper.",
)
@click.option(
    "--model",
    type=click.Choice(["bsc", "tsc", "dsc", "mca", "mmca", "gsc"]),
    help="ProSper: which model it was; only spike-and-slab results say so themselves.",
)
@click.option("--values", metavar="V,V,…", help="ProSper: the latents' values of a dsc (its states), e.g. 0,1,2.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="ProSper: model.h_prime=8, …")
@STORE
@JSON
def command(
    path: str,
    name: str,
    kind: str | None,
    model: Any,
    values: str | None,
    assignments: tuple[str, ...],
    store: str,
    as_json: bool,
) -> None:
    """Make a version from PATH: a result file of ProSper (HDF5), whose parameters' course becomes the history, or the
    folder of a sparse autoencoder (cfg.json and safetensors).

    \b
    Examples:
      sparsefleet artifacts import output/result.h5 --name bars --model bsc --set model.h_prime=8 --set model.gamma=5
      sparsefleet artifacts import downloads/layer-12/ --format sparsify --name layer-12
    """
    if kind not in FOREIGN and Path(path).is_dir():
        raise click.UsageError(f"{path} is a folder: say --format {' or '.join(FOREIGN)}")
    if kind in FOREIGN:
        from ..exchange import import_folder

        if model or values or assignments:
            raise click.UsageError(f"--model, --values and --set belong to results of ProSper, not to {kind}")
        made = import_folder(path, format=kind, store=store, name=name)
        _show(made, f"{made.summary.get('model')} with {made.summary.get('atoms')} atoms from {path}", store, as_json)
        return
    from ...workers.job import apply_assignments
    from ..importing import import_prosper

    changed = apply_assignments({}, list(assignments))
    settings = changed.pop("settings", {})
    if changed or not isinstance(settings, dict):
        name = next(iter(changed), "settings")
        raise click.UsageError(f"--set {name}=…: only the model's settings can be given, as in --set model.gamma=3")
    try:
        numbers = tuple(float(v) for v in values.split(",")) if values else ()
    except ValueError:
        raise click.UsageError(f"--values {values!r}: write numbers with commas, e.g. 0,1,2") from None
    found = import_prosper(path, store=store, name=name, model=model, values=numbers, settings=settings)
    more = {"model": found.model, "updates": found.updates, "left_out": found.left_out}
    _show(found.version, f"{found.model} from {path}, after {found.updates} EM steps", store, as_json, more)


def _show(made: Version, what: str, store: str, as_json: bool, more: dict[str, Any] | None = None) -> None:
    shown = facts(made) | (more or {})

    def people() -> None:
        click.echo(f"{made.ref}: {what}")
        if shown.get("left_out"):
            say(f"left out: {', '.join(shown['left_out'][:20])}")
        say(f"next: sparsefleet artifacts show {made.ref} --store {store}")

    emit(shown, as_json, people)


def facts(version: Version) -> dict[str, Any]:
    """What commands tell of a version with --json."""
    keys = ("name", "number", "snapshot", "written_at", "message", "aliases", "summary")
    return plain({"ref": version.ref} | {k: getattr(version, k) for k in keys})
