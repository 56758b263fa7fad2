"""The services of deploy/compose.yaml as real processes on this machine, for tests of what happens when they break.

Each service has a network namespace and a process namespace of its own, and runs the command and the environment that
compose.yaml gives it. PostgreSQL is Debian's, S3 is moto behind a gate that can break it. As in compose, what ends is
started again. By hand, until Ctrl-C:

    python -m tests.end_to_end.fleet.topology
"""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import yaml

from .gate import Gate
from .network import Network, missing

COMPOSE = Path(__file__).parents[3] / "deploy" / "compose.yaml"
NODES = ("ray-worker-1", "ray-worker-2")
SPACES = ("database", "prefect", "s3-server", "ray-head", *NODES, "worker")
MARK = "FLEET_SERVICE"
PROGRAMS = {"prefect": "prefect", "ray": "ray.scripts.scripts", "sparsefleet": "sparsefleet.pipelines.cli"}
MAIN = {"sparsefleet": "from sparsefleet.pipelines.cli import main; main()"}
# Ray notices a node that is cut off after about a minute; here within half a minute. Names stand in /etc/hosts, which
# the system's resolver reads. The rest saves memory.
RAY_HERE = {
    "GRPC_DNS_RESOLVER": "native",
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "6",
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(100 * 2**20),
    "RAY_USAGE_STATS_ENABLED": "0",
}
START_SECONDS = 240.0
STOP_SECONDS = 8.0


def absent() -> str:
    """Why the topology cannot be started here; empty where it can."""
    if not _postgres().exists():
        return "PostgreSQL is not installed"
    return missing()


def _postgres() -> Path:
    """The folder of the newest PostgreSQL's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[-3]))
    return found[-1].parent if found else Path("/nonexistent")


@dataclass
class Service:
    """One service; its process is the first of a process namespace, with which all others end."""

    name: str
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = True
    """Whether it is started again when it ends."""
    starts: int = 0
    begun: int = 0
    """Where in its log the last start begins, in characters."""


class Topology:
    """All services, from entering the context until leaving it.

    Attributes:
        gate: what stands before S3, to break it.
        network: to cut services off.
        services: by name: database, prefect, s3-server, ray-head, ray-worker-1, ray-worker-2, worker.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fleet-", dir=folder))
        self.folder.chmod(0o711)  # PostgreSQL goes through it to its own
        self.secrets = {
            "POSTGRES_PASSWORD": secrets.token_hex(16),
            "PREFECT_AUTH": f"sparsefleet:{secrets.token_hex(16)}",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "S3_ACCESS_KEY": "fleet",
            "S3_SECRET_KEY": secrets.token_hex(16),
        }
        self._compose: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
        self.services: dict[str, Service] = {}
        self._closing, self._lock = threading.Event(), threading.RLock()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    # -- start and end ---------------------------------------------------------------------------------------------

    def __enter__(self) -> "Topology":
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        self._make_programs()
        self.network = Network(SPACES, here=["s3"])
        self.gate = Gate(self.network.gateway, 9000, (self.network.address("s3-server"), 9000))
        self._supervisor.start()
        self._start_database()
        self._start("s3-server", [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", "9000"], {})
        self._start_as_composed("ray-head")
        self._wait_for("database", lambda: (self.folder / "database" / "socket" / ".s.PGSQL.5432").exists())
        self._start_as_composed("prefect")
        self._wait_for("s3-server", lambda: self.listens("s3-server", 9000))
        self.bucket().create_bucket(Bucket="artifacts")
        self._wait_for("ray-head", lambda: "Ray runtime started" in self.log("ray-head"))
        for node in NODES:
            self._start_as_composed(node, "ray-worker")
        self.wait_for_prefect()
        pool = self.run(*self._words("pool"), environment=self._environment("pool"), timeout=180)
        assert pool.returncode == 0, pool.stderr
        self._start_as_composed("worker")
        self._wait_for("worker", self.has_worker)
        for node in NODES:
            self._wait_for(node, lambda node=node: self._has_joined(node))

    def close(self) -> None:
        """End every process, by its own id, and remove namespaces and files."""
        self._closing.set()
        with self._lock:
            for service in self.services.values():
                service.wanted = False
            if "database" in self.services:  # it would leave shared memory behind; the others leave nothing
                self._interrupt(self.services["database"])
            for service in reversed(self.services.values()):
                if service.process is not None:
                    service.process.kill()  # and with it its whole process namespace
                    service.process.wait()
        for name in ("gate", "network"):
            if name in vars(self):
                getattr(self, name).close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- services --------------------------------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """SIGKILL of a service with all its processes, as when its machine or container dies. It is started again."""
        service = self.services[name]
        assert service.process is not None
        service.process.kill()

    def stop(self, name: str) -> None:
        """The same, and it stays away until `start`."""
        with self._lock:
            service = self.services[name]
            service.wanted = False
            self.kill(name)
            assert service.process is not None
            service.process.wait()

    def start(self, name: str) -> None:
        """Start a service that was stopped."""
        with self._lock:
            self.services[name].wanted = True
            self._spawn(self.services[name])

    def processes(self, name: str, pattern: str = "") -> list[psutil.Process]:
        """Processes of a service whose command line matches, oldest first."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                mine = process.environ().get(MARK) == self._mark(name) and process.status() != psutil.STATUS_ZOMBIE
                if mine and re.search(pattern, " ".join(process.cmdline())):
                    found.append(process)
        return sorted(found, key=lambda p: p.create_time())

    def members(self) -> list[psutil.Process]:
        """Ray workers of ours on both nodes."""
        return [p for node in NODES for p in self.processes(node, "^ray::Member")]

    def log(self, name: str) -> str:
        """What a service has written."""
        file = self.folder / f"{name}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def _start_as_composed(self, name: str, composed: str = "") -> None:
        self._start(name, self._words(composed or name), self._environment(composed or name))

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        service = Service(name, command, environment)
        with self._lock:
            self.services[name] = service
            self._spawn(service)

    def _spawn(self, service: Service) -> None:
        home = self.folder / "tmp" / service.name
        home.mkdir(parents=True, exist_ok=True)
        words = [
            *("setpriv", "--pdeathsig", "KILL"),  # it never outlives this program
            *self.network.inside(service.name),
            *("unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"),
            *service.command,
        ]
        own = {MARK: self._mark(service.name), "RAY_TMPDIR": str(home), "PREFECT_HOME": str(home)}
        service.begun = len(self.log(service.name))
        with (self.folder / f"{service.name}.log").open("ab") as log:
            service.process = subprocess.Popen(
                words,
                env=self._clean() | own | service.environment,
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        service.starts += 1

    def _interrupt(self, service: Service) -> None:
        """Let a service end by itself, if it does soon."""
        assert service.process is not None
        with suppress(psutil.Error, subprocess.TimeoutExpired):
            for first in psutil.Process(service.process.pid).children():
                first.send_signal(signal.SIGINT)
            service.process.wait(STOP_SECONDS)

    def _supervise(self) -> None:
        while not self._closing.wait(0.5):
            with self._lock:
                for service in self.services.values():
                    ended = service.process is not None and service.process.poll() is not None
                    if ended and service.wanted and not self._closing.is_set():
                        self._spawn(service)

    def _start_database(self) -> None:
        """PostgreSQL refuses to run as root: it gets a user without rights, and a folder that only this one enters."""
        home = self.folder / "database"
        (home / "socket").mkdir(parents=True)
        password = home / "password"
        password.write_text(self.secrets["POSTGRES_PASSWORD"])
        for path in (home, home / "socket", password):
            shutil.chown(path, "nobody", "nogroup")
            path.chmod(0o700)
        # Another user's process forgets with whom it was to die: it is told again.
        as_nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--pdeathsig=KILL"]
        access = ["--auth=scram-sha-256", "--username=prefect", f"--pwfile={password}"]
        made = [*as_nobody, str(_postgres() / "initdb"), "--no-sync", f"--pgdata={home / 'data'}", *access]
        subprocess.run(made, cwd="/", capture_output=True, check=True)
        rights = home / "data" / "pg_hba.conf"
        rights.write_text(rights.read_text() + "host all prefect samenet scram-sha-256\n")
        options = ["-c", "listen_addresses=*", "-c", f"unix_socket_directories={home / 'socket'}"]
        self._start("database", [*as_nobody, str(_postgres() / "postgres"), "-D", str(home / "data"), *options], {})

    # -- what compose.yaml says ------------------------------------------------------------------------------------

    def _words(self, name: str) -> list[str]:
        return [self._filled(word) for word in self._compose[name]["command"]]

    def _environment(self, name: str) -> dict[str, str]:
        given = {key: self._filled(value) for key, value in self._compose[name].get("environment", {}).items()}
        if "PREFECT_API_DATABASE_CONNECTION_URL" in given:  # initdb makes this database, compose's image another one
            given["PREFECT_API_DATABASE_CONNECTION_URL"] = re.sub(
                "/prefect$", "/postgres", given["PREFECT_API_DATABASE_CONNECTION_URL"]
            )
        return given | (RAY_HERE if "RAY_AUTH_MODE" in given else {})

    def _filled(self, text: str) -> str:
        """With the secrets, or the default, in the place of ${NAME…}."""
        return re.sub(r"\$\{(\w+)(?::-(\w*)|:\?[^}]*)?\}", lambda m: self.secrets.get(m[1]) or m[2], text)

    def _mark(self, name: str) -> str:
        return f"{self.folder.name}/{name}"

    def _clean(self) -> dict[str, str]:
        """This program's environment without what would lead a service elsewhere."""
        leading = ("PREFECT_", "AWS_", "RAY_", "SPARSEFLEET_", "VIRTUAL_ENV")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(leading) and "proxy" not in k.lower()}
        own = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return kept | {"PATH": own, "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(self.folder / "tmp")}

    def _make_programs(self) -> None:
        """`prefect`, `ray` and `sparsefleet` as the image has them on its path, from this environment."""
        (self.folder / "bin").mkdir()
        (self.folder / "tmp").mkdir()
        for name, module in PROGRAMS.items():
            how = f"-c '{MAIN[name]}'" if name in MAIN else f"-m {module}"
            file = self.folder / "bin" / name
            file.write_text(f'#!/bin/sh\nexec {sys.executable} {how} "$@"\n')
            file.chmod(0o755)

    # -- what a user does ------------------------------------------------------------------------------------------

    @cached_property
    def client(self) -> dict[str, str]:
        """The environment of a user in the container `worker`."""
        home = self.folder / "tmp" / "worker"
        return self._environment("worker") | {"PREFECT_HOME": str(home), "RAY_TMPDIR": str(home)}

    @property
    def s3(self) -> dict[str, str]:
        """The environment by which S3 is reached from this side of the bridge."""
        found = {name: value for name, value in self.client.items() if name.startswith("AWS_")}
        return found | {"AWS_ENDPOINT_URL": f"http://{self.network.gateway}:9000"}

    def run(
        self, *words: object, environment: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """A command as `docker compose exec worker` would run it."""
        return subprocess.run(
            [*self.network.inside("worker"), *map(str, words)],
            env=self._clean() | (self.client if environment is None else dict(environment)),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def api(self, path: str, body: bytes | None = None) -> Any:
        """An answer of the Prefect API."""
        import base64
        import json

        auth = base64.b64encode(self.secrets["PREFECT_AUTH"].encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {auth}"}
        url = f"http://{self.network.address('prefect')}:4200/api/{path}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(url, body, headers), timeout=20) as answer:
            return json.loads(answer.read())

    def bucket(self) -> Any:
        """A client of the S3 server itself, without the gate."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://{self.network.address('s3-server')}:9000",
            region_name="us-east-1",
            aws_access_key_id=self.secrets["S3_ACCESS_KEY"],
            aws_secret_access_key=self.secrets["S3_SECRET_KEY"],
        )

    # -- waiting ---------------------------------------------------------------------------------------------------

    def listens(self, name: str, port: int) -> bool:
        """Whether a service accepts connections."""
        try:
            socket.create_connection((self.network.address(name), port), timeout=2).close()
        except OSError:
            return False
        return True

    def wait_for_prefect(self) -> None:
        """Until the server's API answers."""
        self._wait_for("prefect", lambda: self._answers("work_pools/count") is not None)

    def has_worker(self) -> bool:
        """Whether the Prefect worker polls its pool."""
        return any(worker["status"] == "ONLINE" for worker in self._answers("work_pools/compose/workers/filter") or ())

    def raylets(self) -> int:
        """How many raylets run and have joined the cluster."""
        return sum(self._has_joined(name) for name in ("ray-head", *NODES, "worker"))

    def _has_joined(self, name: str) -> bool:
        said = self.log(name)[self.services[name].begun :]
        return "Ray runtime started" in said and bool(self.processes(name, "/raylet/raylet "))

    def _answers(self, path: str) -> Any:
        try:
            return self.api(path, b"{}")
        except OSError:
            return None

    def _wait_for(self, name: str, what: Callable[[], Any]) -> None:
        end = time.monotonic() + START_SECONDS
        while not what():
            if time.monotonic() > end:
                raise RuntimeError(f"{name} did not start: {self.log(name)[-2000:]}")
            time.sleep(0.2)


def main() -> None:
    """Start all of it, say how to use it, and end it with Ctrl-C."""
    reason = absent()
    if reason:
        raise SystemExit(f"error: the topology cannot be started: {reason}")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    begun = time.monotonic()
    with suppress(KeyboardInterrupt), Topology() as fleet:
        print(f"started in {time.monotonic() - begun:.0f} s, in {fleet.folder}; to use it, in another terminal:")
        inside = " ".join(fleet.network.inside("worker"))
        exports = " ".join(f"{name}={value}" for name, value in fleet.client.items())
        print(f"  {inside} env {exports} PATH={fleet.folder / 'bin'}:$PATH bash")
        threading.Event().wait()


if __name__ == "__main__":
    main()
