"""Where a run's time goes, as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HELP = {
    "compute": "arithmetic on rows: more workers or threads, a GPU, fewer states or atoms",
    "feed": "waiting for rows: more memory per worker (rows are kept), a store nearer by, larger shards",
    "communication": "waiting for the other workers: equal machines, fewer workers, larger batches",
    "commit": "writing to the store: a larger --commit-seconds, a faster store",
}


def time_table(spent: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row per kind of work, the largest first: seconds, share in %, and what would make it less."""
    total = sum(spent.values()) or 1.0
    return [
        {
            "what": what,
            "seconds": round(spent[what], 1),
            "share in %": round(100 * spent[what] / total),
            "less by": HELP[what],
        }
        for what in sorted(spent, key=lambda w: -spent[w])
    ]


def time_line(spent: Mapping[str, float]) -> str:
    """`compute 93 %, feed 4 %, …`, or nothing."""
    return ", ".join(f"{row['what']} {row['share in %']} %" for row in time_table(spent))
