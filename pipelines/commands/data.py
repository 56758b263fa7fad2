"""`sparsefleet data show|verify`."""

from __future__ import annotations

import click

from ..console import JSON, emit, pairs, size


@click.group()
def command() -> None:
    """Show or verify a data set."""


@command.command()
@click.argument("uri")
@JSON
def show(uri: str, as_json: bool) -> None:
    """Show what a data set holds and how it was made."""
    from ...storage import open_dataset

    data = open_dataset(uri)
    facts = {
        "uri": data.uri,
        "kind": data.kind,
        "rows": data.rows,
        "dim": data.dim,
        "dtype": str(data.dtype),
        "patch_shape": data.patch_shape,
        "missing_values": data.missing,
        "arrays": data.arrays,
        "shards": len(data.shards()),
        "shard_rows": data.shard_rows,
        "chunk_rows": data.chunk_rows,
        "bytes": data.nbytes,
        "fingerprint": data.fingerprint,
    }

    def people() -> None:
        pairs(facts | {"bytes": f"{data.nbytes} ({size(data.nbytes)})"})
        for key, value in data.attributes.items():
            text = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            click.echo(f"{key}: {text[:300]}")

    emit(facts | {"attributes": data.attributes}, as_json, people)


@command.command()
@click.argument("uri")
@JSON
@click.pass_context
def verify(ctx: click.Context, uri: str, as_json: bool) -> None:
    """Read everything: checksums, NaN, missing shards. Exit code 1 when something is wrong."""
    from ...storage import open_dataset

    problems = open_dataset(uri).verify()
    said = "\n".join(problems) if problems else f"{uri} is whole"
    emit({"ok": not problems, "problems": problems}, as_json, lambda: click.echo(said))
    ctx.exit(1 if problems else 0)
