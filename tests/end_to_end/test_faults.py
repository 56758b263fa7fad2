"""Faults, through the real command: kill, interrupt and fill the disk, and the result is the undisturbed run's."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sparsefleet.storage import ArtifactStore
from sparsefleet.storage.artifacts import RunBranch
from sparsefleet.workers import program

from ..waiting import wait_for
from .places import Command, Place, interrupted, maps, words

pytestmark = pytest.mark.e2e

MANY = 150
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


@pytest.fixture
def place(tmp_path: Path) -> Generator[Place]:
    made = Place(tmp_path)
    yield made
    made.clean_up()


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
            shared = [line for w in workers for line in maps(w) if "mpich_shm" in line]
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
    next(p for p in command.processes() if "gcs_server" in words(p)).kill()
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
