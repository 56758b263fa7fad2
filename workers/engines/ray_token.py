"""A token for each Ray cluster that is started here: whoever has none can neither join it nor run anything on it.

Ray's own default is one token for all clusters of a user, in a file of the home folder. Ours lives in the environment
of the cluster's processes alone, and as long as they do.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Generator
from importlib import import_module
from typing import Any

MODE, TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"


@contextlib.contextmanager
def own_token() -> Generator[None, None, None]:
    """Inside, `ray.init` starts a cluster that asks for a new token, and this process has it."""
    own = {MODE: "token", TOKEN: secrets.token_hex(32)}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    _reload()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _reload()


def _reload() -> None:
    """Ray reads mode and token once per process; let it read them again."""
    raylet: Any = import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
