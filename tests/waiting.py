"""Waiting for what another process does."""

import time
from collections.abc import Callable
from typing import Any


def wait_for(what: Callable[[], Any], seconds: float = 60, otherwise: Callable[[], str] = str) -> Any:
    """What `what()` gives as soon as it is true; a failure after so many seconds (a bound, not a measurement)."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, otherwise() or f"{what} did not become true"
        time.sleep(0.1)
    return found
