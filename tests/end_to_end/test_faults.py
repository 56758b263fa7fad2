"""Faults, through the real command: kill, interrupt and fill the disk, and the result is the undisturbed run's.

Every process that a command starts inherits a mark in its environment, by which what stays behind is found.
"""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psutil
import pytest
from sparsefleet.pipelines import learning
from sparsefleet.storage import ArtifactStore, NotFound, create_dataset
from sparsefleet.storage.artifacts import RunBranch
from sparsefleet.workers import LearnJob, program

pytestmark = pytest.mark.e2e

MARK = "SPARSEFLEET_TEST_MARK"
MAIN = "from sparsefleet.pipelines.cli import main; main()"
STEPS = 60
MANY = 150
CONTINUE = r"interrupted; continue with the same command, or: sparsefleet (resume [0-9a-f]{12} --store \S+)"
WORKER = r"ray::Member|\S*/python\S* .*-m sparsefleet.workers.mpi_main"
SLOW_MODEL = '''
import os, pathlib, signal, sys, time
from dataclasses import dataclass
import torch
from sparsefleet.models import Codes, Model, Schedule, Stats

DEADLY = pathlib.Path(__file__).with_name("deadly")
try:
    if sys.argv[0] != "-c":  # in a worker, not in the command
        DEADLY.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
except FileNotFoundError:
    pass

@dataclass(frozen=True, slots=True)
class Sums(Stats):
    total: torch.Tensor
    rows: torch.Tensor

@dataclass(frozen=True, kw_only=True)
class Mean(Model):
    """Atoms drift to the mean."""
    pause: float = 0.0
    def schedule(self):
        return Schedule(passes=30, update_every="pass", batch_rows=256)
    def init(self, probe, generator):
        return {"W": torch.randn(probe.dim, self.atoms, generator=generator, dtype=torch.float64)}
    def statistics(self, params, batch, stage):
        time.sleep(self.pause)
        return Sums(batch.x.double().sum(0), torch.tensor([float(len(batch.x))], dtype=torch.float64))
    def update(self, params, stats, stage):
        return {"W": 0.9 * params["W"] + 0.1 * (stats.total / stats.rows)[:, None]}
    def encode(self, params, batch):
        return Codes(torch.zeros(len(batch.x), 1, dtype=torch.int32), batch.x[:, :1])
    def metrics(self, params, stats):
        return {"rows": float(stats.rows)}
    def dictionary(self, params):
        return params["W"]
    def memory(self, rows, dim):
        return 8 * rows * dim
'''


INTERRUPT = """
import json, random, signal, sys
from sparsefleet.workers import LearnJob, run
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
job, chance, count, last = LearnJob.parse(json.loads(sys.argv[1])), random.Random(1), 0, None
while last is None or last.kind != "done":
    try:
        messages = run("learn", job)
        try:
            last = next(messages)
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.001, 0.08))
            for last in messages:
                pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        count += 1
print(last.run_id, count)
"""


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
        return [p for p in self.processes() if re.match(WORKER, _words(p))]

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


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _maps(process: psutil.Process) -> list[str]:
    """What a process has mapped into its memory, a line each."""
    return Path(f"/proc/{process.pid}/maps").read_text().splitlines() if sys.platform == "linux" else []


def wait_for(what: Callable[[], Any], seconds: float = 60, otherwise: Callable[[], str] = str) -> Any:
    """What `what()` gives as soon as it is true; a failure after so many seconds (a bound, not a measurement)."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, otherwise() or f"{what} did not become true"
        time.sleep(0.1)
    return found


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
        (folder / "slow_mean.py").write_text(SLOW_MODEL)

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
        return {"data": str(self.folder / "data.zarr"), "store": str(self.store), "model": "slow_mean:Mean"}

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


@pytest.fixture
def place(tmp_path: Path) -> Generator[Place]:
    made = Place(tmp_path)
    yield made
    made.clean_up()


def interrupted(command: Command) -> list[str]:
    """The words after `sparsefleet` that continue the run, as an interrupted command says them in its last line."""
    code, out, said = command.end(20)
    assert (code, out) == (130, ""), said
    assert "Traceback" not in said
    assert all(line.startswith("m: ") for line in said.splitlines()[:-1]), said
    match = re.fullmatch(CONTINUE, said.splitlines()[-1])
    assert match, said
    return shlex.split(match[1])


class HardLife:
    """One run on one engine, to which everything happens, one thing after the other, and each time it goes on."""

    def __init__(self, place: Place, engine: str) -> None:
        self.place, self._engine = place, engine
        self._pause = 0.02 if engine == "local" else 0.04
        self._commands: list[str] = []

    def live(self) -> str:
        """All of it; returns what the first command said."""
        said = self.lose_members_and_terminate()
        self.interrupt()
        if self._engine != "ray":  # as on the other engines, and starting Ray is slow
            self.interrupt_alone()
        if self._engine != "local":  # killed more often in the next test
            self.kill()
        self.finish()
        return said

    def _learn(self) -> Command:
        return self.place.learn(self._engine, pause=self._pause)

    def lose_members_and_terminate(self) -> str:
        """SIGKILL of a worker as it begins, then of one in the middle of a pass; SIGTERM of the command."""
        deadly = self.place.folder / "deadly"
        if self._engine != "local":
            deadly.touch()
        command = self._learn()
        self.place.commits(command)
        if self._engine != "local":
            assert not deadly.exists()
            workers = command.workers()
            assert len(workers) == 2
            # MPICH's shared memory has lost its name, so that it ends with the ranks.
            shared = [line for w in workers for line in _maps(w) if "mpich_shm" in line]
            assert all(line.endswith("(deleted)") for line in shared)
            workers[-1].kill()
            wait_for(lambda: "(2 of 3)" in command.said, 60, lambda: command.said)
            self.place.commits(command)
        command.process.terminate()
        self._commands = interrupted(command)
        return command.said

    def interrupt(self) -> None:
        """Ctrl-C in a terminal, which reaches the whole group."""
        command = self._learn()
        self.place.commits(command)
        os.killpg(command.process.pid, signal.SIGINT)
        assert interrupted(command) == self._commands

    def interrupt_alone(self) -> None:
        """SIGINT to the command, continued as it has said."""
        command = self.place.start(*self._commands, "--no-flow")
        self.place.commits(command)
        assert "m: continues at update " in command.said
        command.process.send_signal(signal.SIGINT)
        code, _, said = command.end(20)
        assert code == 130
        assert said.splitlines()[-1] == "interrupted; resume it again to continue"

    def kill(self) -> None:
        """SIGKILL of the command, which cannot tidy up."""
        command = self._learn()
        self.place.commits(command)
        command.process.kill()
        assert command.end(20)[0] == -signal.SIGKILL
        store = ArtifactStore(str(self.place.store), create=False)
        assert store.verify() == []
        assert store.names() == []

    def finish(self) -> None:
        """The rest, continued as the interrupted command has said."""
        code, out, said = self.place.start(*self._commands, "--no-flow").end()
        assert code == 0, said
        assert out.startswith("m@1 finished")
        assert "continues at update" in said


def lose_the_head(place: Place) -> str:
    """SIGKILL of the head of the Ray cluster that the command has started; returns what the command said."""
    command = place.learn("ray", passes=1000)
    place.commits(command)
    next(p for p in command.processes() if "gcs_server" in _words(p)).kill()
    wait_for(lambda: "continues at update" in command.said, 90, lambda: command.said)
    command.process.terminate()
    interrupted(command)
    return command.said


def kill_while_it_commits(place: Place) -> str:
    """SIGKILL at random moments of a run that commits after every update; returns what the last command said."""
    chance = random.Random(0)
    for _ in range(8):
        command = place.learn(pause=0.002, commit=0, passes=MANY)
        place.commits(command, 1)
        time.sleep(chance.uniform(0, 0.4))
        command.process.kill()
        assert command.end()[0] == -signal.SIGKILL
        assert ArtifactStore(str(place.store), create=False).verify() == []
    code, _, said = place.learn(pause=0.002, commit=0, passes=MANY).end()
    assert code == 0, said
    return said


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, tuple[Place, Future[str]]]]:
    """The long ones, side by side: they mostly wait."""
    tell: dict[str, Callable[[Place], str]] = {
        "ray": lambda place: HardLife(place, "ray").live(),
        "mpi": lambda place: HardLife(place, "mpi").live(),
        "head": lose_the_head,
        "local": lambda place: HardLife(place, "local").live(),
        "commits": kill_while_it_commits,
    }
    places = {name: Place(tmp_path_factory.mktemp(name)) for name in tell}
    with ThreadPoolExecutor(3) as pool:
        try:
            yield {name: (places[name], pool.submit(tell[name], places[name])) for name in tell}
        finally:
            pool.shutdown(cancel_futures=True)
            for place in places.values():
                place.clean_up()


@pytest.mark.parametrize("engine", ["ray", "mpi", "local"])
def test_a_run_survives_everything_that_may_happen_to_it(
    stories: dict[str, tuple[Place, Future[str]]], engine: str, record_property: Callable[[str, object], None]
) -> None:
    place, life = stories[engine]
    said = life.result()
    if engine != "local":
        assert "workers started again from step 0: " in said
        assert "starting again from the last commit (2 of 3)" in said
    difference = place.check_result(place.undisturbed())
    record_property("relative_difference", difference)
    print(f"{engine}: relative difference of W {difference:.1e}")


def test_a_ray_cluster_that_lost_its_head_is_started_again(stories: dict[str, tuple[Place, Future[str]]]) -> None:
    said = stories["head"][1].result()
    assert "the head of the Ray cluster of this job died; starting again from the last commit (1 of 3)" in said


def test_kill_9_at_any_moment_of_committing(stories: dict[str, tuple[Place, Future[str]]]) -> None:
    place, killing = stories["commits"]
    assert "continues at update" in killing.result()
    assert place.check_result(place.undisturbed(passes=MANY), MANY) == 0.0


def test_ctrl_c_at_any_moment_leaves_a_state_that_goes_on(place: Place) -> None:
    steps = 600
    job = {**place.where(), "name": "m", "atoms": 3, "passes": steps, "module_path": str(place.folder)}
    given = json.dumps({**job, "commit_seconds": 0.02, "report_seconds": 0.01})
    done = subprocess.run([sys.executable, "-c", INTERRUPT, given], capture_output=True, text=True, check=True)
    run_id, interruptions = done.stdout.split()
    found = ArtifactStore(str(place.store)).run(run_id).latest()
    assert found is not None
    assert int(interruptions) >= 5
    assert np.array_equal(found.arrays["W"], place.undisturbed(passes=steps))
    assert {len(course) for course in found.history.values()} == {steps}


@pytest.mark.parametrize("target", [(ArtifactStore, "set_alias"), (RunBranch, "drop")], ids=["aliases", "drop"])
def test_a_result_is_published_once(place: Place, monkeypatch: pytest.MonkeyPatch, target: tuple[type, str]) -> None:
    """The process dies after it has published a version, before the aliases are set or the run is dropped."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    job = {"passes": 3, "settings": {"pause": 0}}
    expected = place.undisturbed(**job)
    monkeypatch.setattr(*target, die)
    with pytest.raises(KeyboardInterrupt):
        place.undisturbed(**job, store=str(place.store), aliases=["best"])
    monkeypatch.undo()
    store = ArtifactStore(str(place.store), create=False)
    assert len(store.runs()) == len(store.history("m")) == 1
    code, out, said = place.learn(pause=0, passes=3, aliases="best").end()
    assert code == 0, said
    assert "continues at update 3" in said
    assert out.startswith("m@1 published")
    place.check_result(expected, 3)
    assert store.aliases("m") == {"best": 1, "latest": 1}
    # Asked for once more, it is learned once more.
    assert place.undisturbed(**job, store=str(place.store)).tolist() == expected.tolist()
    assert [version.number for version in store.history("m")] == [2, 1]


def test_one_job_in_two_processes(place: Place) -> None:
    both = [place.learn(pause=0.01, passes=20) for _ in range(2)]
    ended = [command.end() for command in both]
    lost = [said for code, _, said in ended if code != 0]
    assert len(lost) <= 1, ended
    for said in lost:
        errors = [line for line in said.splitlines() if not line.startswith("m: ")]
        assert len(errors) == 1
        assert re.fullmatch(r"error: run [0-9a-f]{12}: another process works on it or has finished it; .*", errors[0])
    place.check_result(place.undisturbed(passes=20), 20)


def test_two_jobs_publish_under_one_name(place: Place) -> None:
    both = [place.learn(pause=0.005, passes=10, seed=seed) for seed in (1, 2)]
    assert [command.end()[0] for command in both] == [0, 0], [command.said for command in both]
    store = ArtifactStore(str(place.store), create=False)
    assert store.verify() == []
    assert [version.number for version in store.history("m")] == [2, 1]
    assert {store.card(f"m@{n}")["seed"] for n in (1, 2)} == {1, 2}
    for number in (1, 2):
        found = store.load(f"m@{number}")
        expected = place.undisturbed(passes=10, seed=found.card["seed"])
        np.testing.assert_allclose(found.arrays["W"], expected, rtol=1e-12)


def test_a_full_disk_keeps_what_was_there_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("only root on Linux may mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run([*mount, "size=8m", "tmpfs", str(disk)], capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system is not allowed here")
    place = Place(tmp_path, dim=2000, rows=64)
    place.store = disk / "store"
    wide = {"atoms": 60, "passes": 12}
    try:
        place.undisturbed(passes=1, name="old", store=str(place.store))
        code, _, said = place.learn(pause=0, commit=0, **wide).end()
        assert code == 1, said
        assert "Traceback" not in said
        errors = [line for line in said.splitlines() if not line.startswith("m: ")]
        assert len(errors) == 1
        assert errors[0].startswith("error: update ")
        assert str(place.store) in errors[0]
        assert "No space left on device" in errors[0]
        store = ArtifactStore(str(place.store), create=False)
        assert store.verify() == []
        assert store.load("old@1").arrays["W"].shape == (2000, 3)
        stopped = place.committed()
        assert 0 < stopped < 12
        subprocess.run([*mount, "remount,size=64m", str(disk)], check=True)
        code, _, said = place.learn(pause=0, commit=0, **wide).end()
        assert code == 0, said
        assert f"continues at update {stopped}" in said
        place.check_result(place.undisturbed(**wide), 12)
    finally:
        place.clean_up()
        subprocess.run(["umount", str(disk)], check=True)


def test_a_long_run_does_not_fill_the_disk_with_its_commits(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def files(store: str) -> int:
        place.undisturbed(passes=100, atoms=300, commit_seconds=0, store=store)
        assert ArtifactStore(store).verify() == []
        return sum(path.stat().st_size > 10_000 for path in (Path(store) / "repository" / "chunks").iterdir())

    assert files(str(place.folder / "kept")) > 100
    monkeypatch.setattr(program, "TIDY_SECONDS", 0.0)
    assert files(str(place.folder / "tidied")) < 50


def test_a_ray_worker_that_cannot_be_created_ends_the_run_with_its_reason(place: Place) -> None:
    """As on a cluster where this package is not installed."""
    hide = 'import sys\nif "default_worker" in " ".join(sys.orig_argv):\n    sys.modules["sparsefleet"] = None\n'
    (place.folder / "sitecustomize.py").write_text(hide)
    command = place.learn("ray", {"PYTHONPATH": str(place.folder)})
    code, _, said = command.end()
    assert code == 1, said
    assert said.splitlines()[-1].startswith("error: a Ray worker cannot start: ")
    assert "must be installed on every node" in said
    assert "Traceback" not in said
