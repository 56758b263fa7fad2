"""`sparsefleet up` and `down`: a Prefect server and a process worker of our own, on loopback, as two daemons.

Their pids, with the time they were created at, stand in a state file: only processes that still match both are ours.
The server keeps its database, and everything else that Prefect writes, in a folder of its own, and asks for a password.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from . import password
from .errors import PipelineError

POOL = "local"
START_SECONDS = 90.0
"""How long the first start may take: it makes the database."""
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Local:
    """The running local server."""

    host: str
    port: int
    home: str
    """Folder of Prefect's own files (PREFECT_HOME)."""
    pids: dict[str, list[float]]
    """What was started: name -> [pid, create time]."""

    @property
    def url(self) -> str:
        """Where a browser finds the UI."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def api(self) -> str:
        """What PREFECT_API_URL has to be."""
        return f"{self.url}/api"


def state_folder() -> Path:
    """$SPARSEFLEET_HOME, or `sparsefleet` in the user's state folder."""
    own = os.environ.get("SPARSEFLEET_HOME")
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(own).absolute() if own else Path(state) / "sparsefleet"


def running() -> Local | None:
    """The local server, if `up` started one and it is still ours and alive."""
    found = _recorded()
    return found if found and _process(found, "server") else None


def _recorded() -> Local | None:
    try:
        return Local(**json.loads(_state_file().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _stop_all() -> Local | None:
    """Stop whatever of ours is alive; None if nothing was."""
    local = _recorded()
    alive = [found for name in ("worker", "server") if local and (found := _process(local, name))]
    for process in alive:
        _stop(process)
    return local if alive else None


def up(host: str = "127.0.0.1", port: int | None = None, *, worker: bool = True) -> Local:
    """Start the server and its worker, or find them running; returns when the API answers.

    Args:
        host: address to listen on; other machines reach it only if it is not loopback.
        port: by default 4200 or the next free one.
        worker: also start a process worker for the work pool `local`.

    Raises:
        PipelineError: Prefect is not installed, its folder cannot be made, the port is taken, or the server does not
            answer in time.
    """
    _need_prefect()
    folder = state_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _lock_file().touch()
    except OSError as err:
        raise PipelineError(f"{folder} cannot be used: {err.strerror}; SPARSEFLEET_HOME says where else") from err
    with FileLock(_lock_file()):
        password.ensure(folder)
        local = running()
        if local is None:
            # A worker whose server has died would poll a dead address for ever.
            _stop_all()
            local = _start_server(folder, host, port)
        _wait_for(local)
        if worker and not _process(local, "worker"):
            local = _start_worker(local)
    return local


def down() -> Local | None:
    """Stop what `up` started and wait for it to end; None if nothing of ours was running."""
    if not _state_file().exists():
        return None
    with FileLock(_lock_file()):
        local = _stop_all()
        _state_file().unlink(missing_ok=True)
    return local


def client_environment(local: Local | None) -> dict[str, str]:
    """The variables by which Prefect in a process finds `local`, logs in and keeps its files with it."""
    out = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }
    if local is None:
        return out
    auth = password.read(state_folder())
    return out | {"PREFECT_API_URL": local.api, "PREFECT_HOME": local.home, password.CLIENT: auth}


def healthy(api: str, timeout: float = 3.0) -> bool:
    """Whether a Prefect API answers at `api`."""
    try:
        with urllib.request.urlopen(f"{api.rstrip('/')}/health", timeout=timeout) as answer:
            return answer.status == 200
    except (OSError, ValueError):
        return False


def log_file(name: str) -> Path:
    """Where the server or the worker writes."""
    return state_folder() / f"{name}.log"


def _start_server(folder: Path, host: str, port: int | None) -> Local:
    chosen = port if port is not None else _free_port(host)
    if not _is_free(host, chosen):
        raise PipelineError(f"port {chosen} on {host} is taken; leave --port out and a free one is found")
    local = Local(host, chosen, str(folder / "prefect"), {})
    return _keep(_spawn(local, "server", ["server", "start", "--host", host, "--port", str(chosen)]))


def _start_worker(local: Local) -> Local:
    _make_pool(local.api)
    return _keep(_spawn(local, "worker", ["worker", "start", "--pool", POOL, "--name", "sparsefleet"]))


def _spawn(local: Local, name: str, command: list[str]) -> Local:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= client_environment(local)
    environment |= {
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
        # The API must not be asked for through itself while it starts.
        "PREFECT_UI_API_URL": local.api,
    }
    if name == "server":
        del environment["PREFECT_API_URL"]
        environment[password.SERVER] = environment[password.CLIENT]
    with log_file(name).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *command],
            env=environment,
            cwd=state_folder(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    created = psutil.Process(process.pid).create_time()
    return Local(local.host, local.port, local.home, {**local.pids, name: [process.pid, created]})


def _keep(local: Local) -> Local:
    new = _state_file().with_suffix(".new")
    new.write_text(json.dumps(asdict(local)), encoding="utf-8")
    new.replace(_state_file())
    return local


def _wait_for(local: Local) -> None:
    end = time.monotonic() + START_SECONDS
    while not healthy(local.api, timeout=1):
        process = _process(local, "server")
        if process is None or time.monotonic() > end:
            if process:
                _stop(process)
            _state_file().unlink(missing_ok=True)
            raise PipelineError(f"the Prefect server did not start; the reason is at the end of {log_file('server')}")
        time.sleep(0.1)


def _make_pool(api: str) -> None:
    body = json.dumps({"name": POOL, "type": "process", "description": "this machine"}).encode()
    headers = {"Content-Type": "application/json", **password.header(password.read(state_folder()))}
    request = urllib.request.Request(f"{api}/work_pools/", body, headers)
    try:
        urllib.request.urlopen(request, timeout=20).close()
    except urllib.error.HTTPError as err:
        if err.code != 409:  # it is there already
            raise PipelineError(f"the work pool {POOL!r} cannot be made: HTTP {err.code}") from err


def _process(local: Local, name: str) -> psutil.Process | None:
    pid, created = local.pids.get(name, [0, 0])
    try:
        process = psutil.Process(int(pid)) if pid else None
        ours = process is not None and abs(process.create_time() - created) < 1 and process.status() != "zombie"
    except psutil.Error:
        return None
    return process if ours else None


def _stop(process: psutil.Process) -> None:
    family = [process, *process.children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for left in alive:
        left.kill()
    psutil.wait_procs(alive, timeout=5)


def _free_port(host: str) -> int:
    port = next((p for p in range(4200, 4300) if _is_free(host, p)), None)
    if port is None:
        raise PipelineError(f"no free port between 4200 and 4299 on {host}; name one with --port")
    return port


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _state_file() -> Path:
    return state_folder() / "server.json"


def _lock_file() -> Path:
    return state_folder() / "server.lock"


def _need_prefect() -> None:
    from importlib.util import find_spec

    if find_spec("prefect") is None:
        raise PipelineError("needs Prefect: pip install 'sparsefleet[prefect]'")


def describe(local: Local | None) -> dict[str, Any]:
    """The local server as plain values."""
    if local is None:
        return {"running": False}
    alive = [n for n in ("server", "worker") if _process(local, n)]
    return {"running": True, "ui": local.url, "api": local.api, "pool": POOL, "processes": alive, "home": local.home}
