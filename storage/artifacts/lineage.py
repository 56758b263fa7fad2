"""Where a version comes from: the walk over the parents that cards name."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ..errors import NotFound
from .card import Card
from .versions import Version


def lineage(start: Version, card_of: Callable[[str], Card]) -> list[dict[str, Any]]:
    """`start` and everything that it was made from, each once, nearest first (see `ArtifactStore.lineage`)."""
    waiting = deque[tuple[int, dict[str, Any]]]([(0, {"ref": start.ref, "snapshot": start.snapshot})])
    found: dict[str, dict[str, Any]] = {}
    while waiting:
        depth, item = waiting.popleft()
        if item["ref"] in found:
            continue
        card = _card(item, card_of)
        found[item["ref"]] = {
            **item,
            "depth": depth,
            "parents": [parent.ref for parent in card.parents] if card else [],
            "data": card.data.uri if card and card.data else None,
            "missing": card is None,
        }
        waiting += [(depth + 1, parent.model_dump()) for parent in (card.parents if card else [])]
    return list(found.values())


def _card(item: dict[str, Any], card_of: Callable[[str], Card]) -> Card | None:
    if "store" in item:
        return None
    try:
        return card_of(item["ref"])
    except NotFound:
        return None
