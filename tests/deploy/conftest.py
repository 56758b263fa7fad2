"""Tools and clusters for the tests of what is in deploy/."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from ..waiting import wait_for

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SLURM = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ReturnToService=2
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def tool(name: str) -> str:
    """Where a program is, beside Python or on the path; the test is skipped where it is not."""
    found = shutil.which(name, path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed (make setup tools)")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Slurm:
    """A Slurm cluster of one node, this one, that listens on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        values = {"host": socket.gethostname(), "folder": folder, "controller": free_port(), "daemon": free_port()}
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "slurm.conf").write_text(SLURM.format(**values))
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_", "SLURM"))}
        self.environment = kept | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": path,
            "SPARSEFLEET_HOME": str(folder),
        }
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Slurm":
        for command in (["slurmctld", "-D"], ["slurmd", "-D"]):
            with (self.folder / f"{command[0]}.out").open("wb") as out:
                started = subprocess.Popen(command, env=self.environment, stdout=out, stderr=out)
            self._daemons.append(started)
        wait_for(lambda: "idle" in self.call("sinfo", "-h", "-o", "%T", check=False), 60, self.why)
        return self

    def __exit__(self, *_: object) -> None:
        self.call("scancel", "--quiet", "--user=root", check=False)
        try:
            wait_for(lambda: not self.call("squeue", "-h", check=False).strip(), 30)
        finally:
            for daemon in reversed(self._daemons):
                daemon.terminate()
                daemon.wait(30)

    def why(self) -> str:
        """The end of the daemons' logs."""
        return "\n".join(path.read_text()[-1500:] for path in self.folder.glob("slurm*.log"))

    def call(self, *words: object, check: bool = True, **environment: str) -> str:
        """What a command of Slurm prints."""
        command, env = [str(w) for w in words], self.environment | environment
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def state(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job (of the first task of an array)."""
        told = self.call("scontrol", "show", "job", "-o", job).splitlines()[0]
        return dict(pair.partition("=")[::2] for pair in told.split())


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Generator[Slurm]:
    if os.geteuid() != 0:
        pytest.skip("a Slurm cluster of the test's own needs root")
    for name in ("slurmctld", "slurmd", "sbatch"):
        tool(name)
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small data set."""
    from sparsefleet.storage import create_dataset

    values = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    uri = str(tmp_path_factory.mktemp("data") / "rows.zarr")
    layout = {"data": ((8,), "float32")}
    writer = create_dataset(uri, rows=600, arrays=layout, shard_rows=200, chunk_rows=100, attributes={})
    for shard in writer.shards():
        writer.write(shard, data=values[shard.slice])
    writer.finish()
    return uri
