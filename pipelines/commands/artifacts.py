"""`sparsefleet artifacts …`: the store of published versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import JSON, STORE, duration, emit, pairs, say, size, table
from ..metrics import ordered
from .imports import FOREIGN, facts
from .imports import command as import_

if TYPE_CHECKING:
    from ...storage import ArtifactStore
    from ...storage.artifacts import Version

REF = click.argument("ref", metavar="NAME[@VERSION]")
NAME = click.argument("name")
FORMATS = ("npz", "safetensors", "json", "folder")
"""Layouts of our own for export."""


@click.group()
def command() -> None:
    """Published dictionaries: every version is kept, aliases move.

    \b
    A version is written NAME@3, NAME@best (an alias), or NAME (the newest).
    """


def _open(uri: str) -> ArtifactStore:
    from ...storage import ArtifactStore

    return ArtifactStore(uri, create=False)


@command.command("list")
@STORE
@JSON
def list_(store: str, as_json: bool) -> None:
    """List all names with their newest version."""
    opened = _open(store)
    newest = [opened.resolve(name) for name in opened.names()]
    emit([facts(v) for v in newest], as_json, lambda: _table(newest, "no version in this store yet"))


@command.command()
@REF
@STORE
@click.option("--figures", type=click.Path(file_okay=False), help="Also write the version's pictures into this folder.")
@JSON
def show(ref: str, store: str, figures: str | None, as_json: bool) -> None:
    """Show a version: its card, its metrics and its arrays."""
    found = _open(store).load(ref)
    written = _write_figures(Path(figures), found.figures) if figures else []
    shapes = {n: {"shape": list(a.shape), "dtype": str(a.dtype)} for n, a in found.arrays.items()}
    value = facts(found.version) | {"card": found.card, "arrays": shapes, "figures": written or sorted(found.figures)}

    def people() -> None:
        card = found.card
        job, data = card["job"], card["data"] or {}
        engine = card["engine"]
        pairs(
            {
                "version": f"{found.version.ref} ({', '.join(found.version.aliases) or 'no alias'})",
                "written": _when(found.version),
                "model": f"{job.get('model')} with {job.get('atoms')} atoms, seed {_known(card['seed'])}",
                "settings": ", ".join(f"{k}={v}" for k, v in (job.get("settings") or {}).items()) or "defaults",
                "data": f"{data.get('uri')} ({_known(data.get('rows'))} rows of {data.get('dim')})",
                "parents": [p["ref"] for p in card["parents"]],
                "engine": f"{engine.get('name')}, {_known(engine.get('workers'))} workers, "
                f"{duration(card['wall_seconds'] or 0)}",
                "code": " ".join(str(v) for v in (card["code"]["version"], card["code"]["commit"]) if v),
                "arrays": [f"{n} {s['shape']} {s['dtype']}" for n, s in shapes.items()],
                "figures": value["figures"],
                **({"licence": card["licence"]} if card["licence"] else {}),
                **({"notes": card["notes"]} if card["notes"] else {}),
            }
        )
        click.echo("metrics")
        pairs({f"  {n}": card["metrics"][n] for n in ordered(card["metrics"])})
        if not figures:
            say(f"next: sparsefleet artifacts show {ref} --store {store} --figures pictures/")

    emit(value, as_json, people)


@command.command()
@NAME
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="How many; 0: all.")
@STORE
@JSON
def history(name: str, limit: int, store: str, as_json: bool) -> None:
    """List the newest versions of a name, newest first."""
    versions = _open(store).history(name, limit or None)

    def people() -> None:
        _table(versions, "no version")
        if (older := versions[-1].number - 1) > 0:
            say(f"{older:,} older: --limit 0 lists all")

    emit([facts(v) for v in versions], as_json, people)


@command.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@STORE
@JSON
def diff(a: str, b: str, store: str, as_json: bool) -> None:
    """Compare two versions: settings, metrics, distance of their arrays."""
    found = _open(store).diff(a, b)

    def people() -> None:
        rows = [(f"{part}.{k}", *v) for part in ("job", "data", "engine", "packages") for k, v in found[part].items()]
        rows += [(f"metrics.{k}", *v) for k, v in found["metrics"].items()]
        table(("", found["a"], found["b"]), rows, empty="equal settings and metrics")
        for name, entry in found["arrays"].items():
            cosine = entry.get("matched_cosine")
            atoms = f", atoms matched with cosine {cosine['mean']:.3f} on average" if cosine else ""
            distance = entry["relative_distance"]
            apart = "other shapes" if distance is None else f"relative distance {distance:.3g}"
            click.echo(f"{name}: {apart}{atoms}")

    emit(found, as_json, people)


@command.command()
@NAME
@click.argument("alias", required=False)
@click.argument("ref", metavar="[VERSION]", required=False)
@click.option("--remove", is_flag=True, help="Forget the alias.")
@STORE
@JSON
def alias(name: str, alias: str | None, ref: str | None, remove: bool, store: str, as_json: bool) -> None:
    """Show the aliases of a name, or point one at a version.

    \b
    Examples:
      sparsefleet artifacts alias my-patches
      sparsefleet artifacts alias my-patches best 3
      sparsefleet artifacts alias my-patches best --remove
    """
    opened = _open(store)
    if alias and remove:
        opened.remove_alias(name, alias)
    elif alias and ref:
        opened.set_alias(name, alias, ref)
    elif alias:
        raise click.UsageError(f"which version shall {alias!r} point at? Write: alias {name} {alias} 3")
    found = opened.aliases(name)
    emit(found, as_json, lambda: table(("alias", "version"), list(found.items()), empty="no alias"))


@command.command()
@NAME
@click.argument("to", metavar="VERSION")
@STORE
@JSON
def rollback(name: str, to: str, store: str, as_json: bool) -> None:
    """Publish an old version's content again as the newest one; nothing is lost."""
    made = _open(store).rollback(name, to)
    emit(facts(made), as_json, lambda: click.echo(f"{made.ref}: {made.message}"))


@command.command()
@REF
@STORE
@click.option(
    "--format",
    "kind",
    type=click.Choice([*FORMATS, *FOREIGN]),
    help="saelens and sparsify are for autoencoders; by default from the ending of --out.",
)
@click.option("--out", type=click.Path(), help="File or folder to write; by default NAME-vN.FORMAT.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@JSON
def export(ref: str, store: str, kind: str | None, out: str | None, overwrite: bool, as_json: bool) -> None:
    """Write a version to ordinary files. The keys of an .npz are the parameters' names; W is [D, H].

    \b
    Example:
      sparsefleet artifacts export my-patches@best --format npz --out my-patches.npz
      sparsefleet artifacts export my-sae --format saelens --out my-sae/
    """
    opened = _open(store)
    foreign = kind in FOREIGN
    if out is None:
        version, kind = opened.resolve(ref), kind or "npz"
        ending = f"-{kind}" if foreign else "" if kind == "folder" else f".{kind}"
        out = f"{version.name}-v{version.number}{ending}"
    if foreign:
        from ..exchange import export_folder

        files = [str(p) for p in export_folder(store, ref, out, str(kind), overwrite=overwrite)]
    else:
        files = [str(p) for p in opened.export(ref, out, kind, overwrite=overwrite)]
    emit({"files": files}, as_json, lambda: click.echo("\n".join(files)))


command.add_command(import_)


@command.command()
@click.argument("ref", required=False, metavar="[NAME[@VERSION]]")
@STORE
@JSON
@click.pass_context
def verify(ctx: click.Context, ref: str | None, store: str, as_json: bool) -> None:
    """Read everything of a version, or of the store, and compare checksums. Exit code 1 when something is damaged."""
    problems = _open(store).verify(ref)
    what = ref or "the store"
    emit(
        {"ok": not problems, "problems": problems},
        as_json,
        lambda: click.echo("\n".join(problems) if problems else f"{what} is whole"),
    )
    ctx.exit(1 if problems else 0)


@command.command()
@STORE
@click.option("--yes", is_flag=True, help="Really remove; otherwise it is only counted.")
@click.option("--older-than-days", type=float, default=7, show_default=True, help="Spare what is younger.")
@JSON
def gc(store: str, yes: bool, older_than_days: float, as_json: bool) -> None:
    """Remove what no version, alias or run needs any more."""
    found = _open(store).garbage_collect(dry_run=not yes, older_than_days=older_than_days)

    def people() -> None:
        verb = "removed" if yes else "could be removed"
        memories = f", and what {found['memories']} ended runs kept of rows," if found["memories"] else ""
        chunks = f"{found['chunks']} chunks and {found['snapshots']} snapshots"
        click.echo(f"{size(found['bytes'])} in {chunks}{memories} {verb}")
        if not yes and (found["bytes"] or found["memories"]):
            say(f"next: sparsefleet artifacts gc --store {store} --yes")

    emit(found, as_json, people)


@command.command()
@REF
@STORE
@JSON
def lineage(ref: str, store: str, as_json: bool) -> None:
    """Show what a version was made from, and that from what."""
    found = _open(store).lineage(ref)

    def people() -> None:
        for entry in found:
            gone = "  (in another store, or gone)" if entry["missing"] else ""
            click.echo(f"{'  ' * entry['depth']}{entry['ref']}  from {entry['data'] or '-'}{gone}")

    emit(found, as_json, people)


@command.command()
@STORE
@JSON
def doctor(store: str, as_json: bool) -> None:
    """Tell what the store's place can do: whether several writers are safe there."""
    found = _open(store).doctor()
    emit(found, as_json, lambda: pairs(found))


def _table(versions: list[Version], empty: str) -> None:
    def metric(version: Version) -> str:
        metrics = version.summary.get("metrics", {})
        shown = [(n, metrics[n]) for n in ordered(metrics) if isinstance(metrics[n], (int, float))]
        return "  ".join(f"{n} {v:.4g}" for n, v in shown[:3])

    columns: dict[str, Callable[[Version], Any]] = {
        "version": lambda v: v.ref,
        "written": _when,
        "model": lambda v: v.summary.get("model"),
        "atoms": lambda v: v.summary.get("atoms"),
        "aliases": lambda v: v.aliases,
        "metrics": metric,
    }
    table(tuple(columns), [[read(v) for read in columns.values()] for v in versions], empty=empty)


def _known(value: Any) -> Any:
    return "?" if value is None else value


def _when(version: Version) -> str:
    return version.written_at.astimezone().strftime("%Y-%m-%d %H:%M")


def _write_figures(folder: Path, figures: dict[str, bytes]) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, png in figures.items():
        (folder / name).write_bytes(png)
    return [str(folder / name) for name in figures]
