"""Log lines as JSON objects, one a line, with the run's id, on request: SPARSEFLEET_LOG=json in the environment.

The setting travels in the environment, so that every process of a run has it: the command, Ray's actors, MPI's ranks.
Each line has `time` (UTC), `level`, `logger`, `message`, `process`, `host`, and of what is known `run`, `engine`,
`rank` and `workers`; events of a run also have their numbers.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from ..storage.artifacts.card import plain
from .errors import JobError
from .messages import Messages
from .progress import Progress

SETTING = "SPARSEFLEET_LOG"
ROOT = "sparsefleet"
FACTS = "facts"
KEPT_OUT = {"run_id", "result"}

_about: dict[str, Any] = {}


def wanted() -> bool:
    """Whether log lines shall be JSON.

    Raises:
        JobError: SPARSEFLEET_LOG has another value than json or text.
    """
    value = os.environ.get(SETTING) or "text"
    if value not in ("json", "text"):
        raise JobError(f"{SETTING}={value!r}: write json or text")
    return value == "json"


def about(**facts: Any) -> None:
    """Put these facts on every line of this process from now on; None takes one away."""
    _about.update(facts)
    for name in [name for name, value in facts.items() if value is None]:
        del _about[name]


def start(stream: TextIO | Messages | None = None, wrap: str = "") -> None:
    """Write this package's log as JSON lines from now on, if that is wanted; a second call changes nothing.

    Args:
        stream: where to; standard error if not given.
        wrap: put each object into another one under this key.
    """
    logger = logging.getLogger(ROOT)
    if not wanted() or any(isinstance(h.formatter, Lines) for h in logger.handlers):
        return
    handler = _Standard() if stream is None else logging.StreamHandler(stream)
    handler.setFormatter(Lines(wrap))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # What is written as JSON here must not appear as text once more.
    logger.propagate = False


def event(logger: logging.Logger, progress: Progress, level: int = logging.INFO) -> None:
    """Log a message of a run with its numbers."""
    if logger.isEnabledFor(level):
        numbers = progress.model_dump(exclude_defaults=True, exclude=KEPT_OUT)
        logger.log(level, progress.message or progress.kind, extra={FACTS: {"event": numbers.pop("kind"), **numbers}})


def pass_on(line: str) -> None:
    """Write a line of another process of this run to standard error as it is."""
    sys.stderr.write(line.rstrip("\n") + "\n")
    sys.stderr.flush()


class Lines(logging.Formatter):
    """A record as one line of JSON."""

    def __init__(self, wrap: str = "") -> None:
        super().__init__()
        self._wrap = wrap

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_about,
            "process": record.process,
            "host": socket.gethostname(),
            **plain(getattr(record, FACTS, {})),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps({self._wrap: line} if self._wrap else line)


class _Standard(logging.Handler):
    """Writes to what standard error is when a line is written: it may be redirected meanwhile."""

    def emit(self, record: logging.LogRecord) -> None:
        pass_on(self.format(record))
