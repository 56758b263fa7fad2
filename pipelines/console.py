"""What commands print: tables and sentences for people, or one JSON document for programs."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
STORE = click.option("--store", default="./artifacts", show_default=True, help="URI of the artifact store.")


def emit(value: Any, as_json: bool, show: Callable[[], None]) -> None:
    """Print `value` as one JSON document, or call `show` to print it for people."""
    if as_json:
        click.echo(json.dumps(plain(value), indent=1, allow_nan=False))
    else:
        show()


def plain(value: Any) -> Any:
    """`value` in types that JSON knows; NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if value - value == 0 else None
    return str(value)


def say(message: str, level: int = logging.INFO) -> None:
    """A message for people, beside the result: on stderr, or in the log (there of this level) where that is JSON."""
    if os.environ.get("SPARSEFLEET_LOG") == "json":
        # Here, because the workers' room loads torch.
        from ..workers import logs

        logs.start()
        logging.getLogger(__name__).log(level, message)
    else:
        click.echo(message, err=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str = "nothing here") -> None:
    """Print rows under headers, columns as wide as their longest entry; the last one may be cut to the terminal."""
    if not rows:
        click.echo(empty)
        return
    cells = [[_cell(c) for c in row] for row in rows]
    widths = [max(len(h), *(len(r[i]) for r in cells)) for i, h in enumerate(headers)]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for i, row in enumerate([list(headers), *cells]):
        line = "  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip()[:limit]
        click.secho(line, bold=i == 0)


def pairs(rows: dict[str, Any]) -> None:
    """Print `name: value` lines, the values aligned."""
    width = max((len(k) for k in rows), default=0)
    for key, value in rows.items():
        click.echo(f"{key.ljust(width)}  {_cell(value)}")


def size(count: float) -> str:
    """Bytes for people: 1536 is '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds for people: 75 is '1 min 15 s'."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return str(value)
