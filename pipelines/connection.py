"""Whether there is a Prefect API to talk to, and a client for it. Prefect itself is imported only when there is."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from . import password, server
from .errors import PipelineError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


class Api(NamedTuple):
    """A Prefect API that answers."""

    url: str
    home: str | None
    """Where its client keeps its files, for the server that `sparsefleet up` started."""

    @property
    def ui(self) -> str:
        """Where a browser finds the UI, for a server that serves both."""
        return self.url.removesuffix("/").removesuffix("/api")


def find_api() -> Api | None:
    """The API that PREFECT_API_URL names, else the local server's if it runs.

    Raises:
        PipelineError: one is named, but it does not answer or Prefect is not installed.
    """
    named = os.environ.get("PREFECT_API_URL")
    local = None if named else server.running()
    if not named and local is None:
        return None
    if find_spec("prefect") is None:
        raise PipelineError("needs Prefect: pip install 'sparsefleet[prefect]' (or --no-flow)")
    api = Api(named, None) if named else Api(local.api, local.home) if local else None
    assert api is not None
    if not server.healthy(api.url):
        where = "PREFECT_API_URL" if named else "`sparsefleet up`"
        raise PipelineError(
            f"the Prefect server at {api.url} (from {where}) does not answer; start it, or use --no-flow"
        )
    return api


def need_api() -> Api:
    """As `find_api`; PipelineError where there is none."""
    api = find_api()
    if api is None:
        raise PipelineError("no Prefect server: start one with `sparsefleet up`, or set PREFECT_API_URL")
    return api


def use(api: Api, *, quiet: bool = True) -> None:
    """Let Prefect, which must not be imported yet, talk to `api`; quiet: its log goes to the server only."""
    for name, value in server.client_environment(None).items():
        os.environ.setdefault(name, value)
    os.environ["PREFECT_API_URL"] = api.url
    if api.home:
        os.environ["PREFECT_HOME"] = api.home
        os.environ[password.CLIENT] = password.read(server.state_folder())
    if quiet:
        # An error is said once, by the command; the log in the UI has the whole story.
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


@contextmanager
def client(api: Api) -> Generator[SyncPrefectClient]:
    """A client of `api`.

    Raises:
        PipelineError: the API refuses, or went away.
    """
    use(api)
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        with get_client(sync_client=True) as found:
            yield found
    except PrefectHTTPStatusError as err:
        raise PipelineError(f"the Prefect server at {api.url} {refusal(err)}") from err
    except httpx.HTTPError as err:
        raise PipelineError(f"the Prefect server at {api.url} does not answer: {err}") from err


def refusal(err: Any) -> str:
    """What an error of HTTP status means, as the end of a sentence about the server."""
    if err.response.status_code == 401:
        return f"asks for a password: set {password.CLIENT}"
    try:
        return f"refuses: {str(err.response.json().get('detail'))[:300]}"
    except ValueError:
        return f"refuses: HTTP {err.response.status_code}"
