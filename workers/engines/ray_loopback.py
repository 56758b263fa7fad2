"""A Ray cluster of this machine alone listens on loopback: on all ports, its metrics' too.

On Linux Ray takes an address that other machines reach, and 127.0.0.1 for a wish to be corrected; then all its servers
listen on all interfaces. On Windows and macOS it stays on loopback, which its setting RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER
decides. Ray reads that when it is imported, which a program of the user's may have done before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from importlib import import_module
from typing import Any


@contextlib.contextmanager
def on_loopback() -> Generator[None, None, None]:
    """Inside, `ray.init` starts a cluster that only this machine reaches."""
    constants: Any = import_module("ray._private.ray_constants")
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
