"""A run's meters for Prometheus, served by the process that runs the flow: on this machine only, and on request.

SPARSEFLEET_METRICS_PORT=9464 (or `--metrics-port 9464`) names the port; a range 9464-9474 takes the first that is free,
for machines on which several runs work at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from ..workers.meters import COUNTERS, GAUGES, LABELS, PREFIX, WORK, Meters
from .console import say
from .errors import PipelineError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from ..workers.job import Job

SETTING = "SPARSEFLEET_METRICS_PORT"
HOST = "127.0.0.1"


class PrometheusSink:
    """Counters and gauges of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge

        labels = lambda name: (*LABELS, WORK) if name == "seconds" else LABELS  # noqa: E731
        self._counters = {n: Counter(PREFIX + n, t, labels(n), registry=registry) for n, t in COUNTERS.items()}
        self._gauges = {n: Gauge(PREFIX + n, t, LABELS, registry=registry) for n, t in GAUGES.items()}

    def add(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Let a counter grow."""
        self._counters[name].labels(**labels).inc(value)

    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Give a gauge this value."""
        self._gauges[name].labels(**labels).set(value)


def meters(job: Job, run: str = "") -> Meters | None:
    """What takes the messages of a job's rank 0, where the environment asks for it; the endpoint lives as long as this
    process.

    Raises:
        PipelineError: the setting is no port, the port is taken, or prometheus_client is not installed.
    """
    setting = os.environ.get(SETTING)
    return Meters(_served(setting), engine=job.engine, run=run) if setting else None


@cache
def _served(setting: str) -> PrometheusSink:
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
    except ImportError as err:
        raise PipelineError(f"{SETTING} needs prometheus_client: pip install 'sparsefleet[monitoring]'") from err
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for port in ports(setting):
        try:
            server, _ = start_http_server(port, HOST, registry)
        except OSError:
            continue
        say(f"metrics at http://{HOST}:{server.server_port}/metrics")
        return PrometheusSink(registry)
    raise PipelineError(f"metrics port {setting} on {HOST} is taken; name another one, or a range as 9464-9474")


def ports(setting: str) -> range:
    """The ports that `9464`, `9464-9474` or `0` (any that is free) names.

    Raises:
        PipelineError: it names none.
    """
    found = re.fullmatch(r"\s*(\d{1,5})(?:\s*-\s*(\d{1,5}))?\s*", setting)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if last < first or last > 65535:
        raise PipelineError(f"metrics port {setting!r}: give a port (9464) or a range of ports (9464-9474)")
    return range(first, last + 1)
