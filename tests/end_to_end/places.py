"""A place where real commands run, with all that they start: what the tests of faults share.

Every process that a command starts inherits a mark in its environment, by which what stays behind is found.
"""

import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psutil
import pytest
from sparsefleet.pipelines import learning
from sparsefleet.storage import ArtifactStore, NotFound, create_dataset
from sparsefleet.workers import LearnJob

from ..waiting import wait_for

MARK = "SPARSEFLEET_TEST_MARK"
MAIN = "from sparsefleet.pipelines.cli import main; main()"
STEPS = 60
CONTINUE = r"interrupted; continue with the same command, or: sparsefleet (resume [0-9a-f]{12} --store \S+)"
WORKER = r"ray::Member|\S*/python\S* .*sparsefleet.workers.mpi_main"
CLOCK = Path(__file__).with_name("clock.cpp")
OWN_MODEL = Path(__file__).parents[1] / "own_mean.py"


class Command:
    """A running `sparsefleet` command in a session of its own, with all processes that it starts."""

    def __init__(self, folder: Path, *args: object, environment: dict[str, str]) -> None:
        self.mark = uuid4().hex
        self._err = (folder / f"stderr-{self.mark}").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *map(str, args)],
            cwd=folder,
            env=os.environ | {MARK: self.mark} | environment,
            stdout=subprocess.PIPE,
            stderr=self._err,
            text=True,
            start_new_session=True,
        )

    @property
    def said(self) -> str:
        """Its standard error so far."""
        return Path(self._err.name).read_text()

    def processes(self) -> list[psutil.Process]:
        """What runs of it, itself included."""
        return sorted((p for p in psutil.process_iter() if self._is_mine(p)), key=lambda p: p.pid)

    def _is_mine(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def workers(self) -> list[psutil.Process]:
        """Its ranks or actors."""
        return [p for p in self.processes() if re.match(WORKER, words(p))]

    def end(self, seconds: float = 90) -> tuple[int, str, str]:
        """Exit code, standard output and error, once it and all that it started are gone."""
        out, _ = self.process.communicate(timeout=seconds)
        wait_for(lambda: not self.processes(), 20, lambda: f"{self.processes()} stayed behind")
        return self.process.returncode, out, self.said

    def clean_up(self) -> None:
        """End what a failed test left."""
        for process in self.processes():
            process.kill()
        self.process.wait()
        self._err.close()


class MovedClock:
    """The wall clock of commands started with `environment`, moved while they run."""

    def __init__(self, folder: Path) -> None:
        library, self._file = folder / "clock.so", folder / "clock"
        if sys.platform != "linux" or not shutil.which("g++"):
            pytest.skip("a clock can be moved on Linux, with g++")
        subprocess.run(["g++", "-O2", "-shared", "-fPIC", "-o", library, CLOCK], check=True)
        self._file.write_bytes(struct.pack("q", 0))
        self.environment = {"LD_PRELOAD": str(library), "SPARSEFLEET_TEST_CLOCK": str(self._file)}

    def move(self, seconds: int) -> None:
        """From now on the clock is so much ahead of the true time."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("q", seconds))


def words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def maps(process: psutil.Process) -> list[str]:
    """What a process has mapped into its memory, a line each."""
    return Path(f"/proc/{process.pid}/maps").read_text().splitlines() if sys.platform == "linux" else []


class Place:
    """A folder with a data set, a slow model and a store, and the commands that are run there."""

    def __init__(self, folder: Path, dim: int = 16, rows: int = 2000) -> None:
        self.folder, self.store = folder, folder / "store"
        self.commands: list[Command] = []
        values = np.random.default_rng(3).normal(1, 2, size=(rows, dim)).astype(np.float32)
        layout = {"data": ((dim,), "float32")}
        writer = create_dataset(
            str(folder / "data.zarr"), rows=rows, arrays=layout, shard_rows=256, chunk_rows=64, attributes={}
        )
        for shard in writer.shards():
            writer.write(shard, data=values[shard.slice])
        writer.finish()
        shutil.copy(OWN_MODEL, folder)

    def clean_up(self) -> None:
        """End what a failed test left running."""
        for command in self.commands:
            command.clean_up()

    def start(self, *args: object, **environment: str) -> Command:
        """Any command."""
        self.commands.append(Command(self.folder, *args, environment=environment))
        return self.commands[-1]

    def learn(
        self,
        engine: str = "local",
        environment: dict[str, str] | None = None,
        *,
        pause: float = 0.02,
        commit: float = 0.2,
        **flags: object,
    ) -> Command:
        """`sparsefleet learn`, slow and committing often."""
        job = {"name": "m", "atoms": 3, "passes": STEPS, "set": f"model.pause={pause}", "engine": engine}
        group = {} if engine == "local" else {"workers": 2, "threads": 1}
        often = {"commit-seconds": commit, "report-seconds": 0}
        given = {**self.where(), "module-path": self.folder, **job, **group, **often, **flags}
        words = [word for key, value in given.items() for word in (f"--{key}", value)]
        return self.start("learn", "--no-flow", *words, **(environment or {}))

    def where(self) -> dict[str, str]:
        """The fields of a job that say where everything is."""
        return {"data": str(self.folder / "data.zarr"), "store": str(self.store), "model": "own_mean:Mean"}

    def undisturbed(self, **fields: Any) -> np.ndarray[Any, Any]:
        """W of the same job, run in one go in this process."""
        job = {**self.where(), "name": "m", "atoms": 3, "module_path": str(self.folder), "passes": STEPS}
        typed = LearnJob.parse({**job, "store": str(self.folder / "undisturbed"), **fields})
        return ArtifactStore(typed.store).load(learning.learn(typed).ref).arrays["W"]

    def committed(self) -> int:
        """The step of the unfinished run's last commit; -1 without one."""
        try:
            runs = ArtifactStore(str(self.store), create=False).runs()
        except NotFound:
            return -1
        return runs[0].step if runs else -1

    def commits(self, command: Command, more: int = 3) -> None:
        """Wait until a command has committed some more updates, and is then still at work."""
        before = self.committed()

        def ready() -> bool:
            assert command.process.poll() is None, command.said
            return "starts" in command.said or "continues" in command.said

        wait_for(ready, 90, lambda: command.said)
        wait_for(lambda: self.committed() >= max(before, 0) + more, 60, lambda: command.said)
        assert command.process.poll() is None, command.said

    def check_result(self, expected: np.ndarray[Any, Any], steps: int = STEPS) -> float:
        """There is one whole version with the parameters of the undisturbed run; returns the relative difference."""
        store = ArtifactStore(str(self.store), create=False)
        assert store.verify() == []
        assert [version.number for version in store.history("m")] == [1]
        assert store.runs() == []
        found = store.load("m@1")
        assert {name: len(course) for name, course in found.history.items()} == {"rows": steps, "seconds": steps}
        assert np.all(np.diff(found.history["seconds"]) > 0)
        store.export("m@1", self.folder / "m.npz", overwrite=True)
        with np.load(self.folder / "m.npz") as exported:
            difference = float(np.linalg.norm(exported["W"] - expected) / np.linalg.norm(expected))
        assert difference <= 1e-5
        return difference


def interrupted(command: Command) -> list[str]:
    """The words after `sparsefleet` that continue the run, as an interrupted command says them in its last line."""
    code, out, said = command.end(20)
    assert (code, out) == (130, ""), said
    assert "Traceback" not in said
    assert all(line.startswith("m: ") for line in said.splitlines()[:-1]), said
    match = re.fullmatch(CONTINUE, said.splitlines()[-1])
    assert match, said
    return shlex.split(match[1])
