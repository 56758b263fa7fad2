"""A worker's meters in Ray's own exporter: every node of a cluster serves them to Prometheus beside Ray's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..meters import COUNTERS, GAUGES, LABELS, PREFIX, WORK


class RaySink:
    """Counters and gauges of this Ray worker (`ray_sparsefleet_…` where they are scraped)."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge

        labels = lambda name: (*LABELS, WORK) if name == "seconds" else LABELS  # noqa: E731
        self._counters: dict[str, Any] = {n: Counter(PREFIX + n, text, labels(n)) for n, text in COUNTERS.items()}
        self._gauges: dict[str, Any] = {n: Gauge(PREFIX + n, text, LABELS) for n, text in GAUGES.items()}

    def add(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Let a counter grow."""
        self._counters[name].inc(value, tags=dict(labels))

    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Give a gauge this value."""
        self._gauges[name].set(value, tags=dict(labels))
