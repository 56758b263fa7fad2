"""Several processes on one local store, and processes that are killed while they write."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sparsefleet.storage.artifacts import ArtifactStore

pytestmark = pytest.mark.e2e

PUBLISH = """
import sys, numpy as np
from sparsefleet.storage.artifacts import ArtifactStore
store = ArtifactStore(sys.argv[1])
for step in range(int(sys.argv[3])):
    made = store.publish("shared", arrays={"x": np.full(4000, float(step))}, card={"notes": f"{sys.argv[2]}-{step}"})
    store.set_alias("shared", f"by{sys.argv[2]}", made.number)
    print(made.number, flush=True)
"""

COMMIT = """
import sys, numpy as np
from sparsefleet.storage.artifacts import ArtifactStore
store = ArtifactStore(sys.argv[1])
run, step = store.run("r"), 0
latest = run.latest()
step = latest.step if latest else 0
while True:
    step += 1
    run.commit(step, {"W": np.full((300, 100), float(step)), "t": np.array(step)}, {"x": np.arange(float(step))})
    made = store.publish("killed", arrays={"W": np.full(5000, float(step))}, card={"seed": step})
    print(step, made.number, flush=True)
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_no_version_is_lost_when_four_processes_publish_the_same_name(tmp_path: Path) -> None:
    each = 5
    place = tmp_path / "store"  # not made yet: they also race for that
    writers = [start(PUBLISH, place, who, each) for who in range(4)]
    said = [int(line) for writer in writers for line in writer.communicate(timeout=120)[0].split()]
    assert [writer.returncode for writer in writers] == [0] * 4
    assert sorted(said) == list(range(1, 4 * each + 1))
    store = ArtifactStore(str(place), create=False)
    notes = {store.card(version.ref)["notes"] for version in store.history("shared")}
    assert notes == {f"{who}-{step}" for who in range(4) for step in range(each)}
    assert len(store.aliases("shared")) == 5
    assert store.verify() == []


def test_kill_9_leaves_a_store_that_is_whole_and_goes_on(tmp_path: Path) -> None:
    place = str(tmp_path / "store")
    ArtifactStore(place)
    step = published = 0
    for wait in (0.02, 0.11, 0.05, 0.17):
        writer = start(COMMIT, place)
        assert writer.stdout is not None
        lines = [writer.stdout.readline()]
        time.sleep(wait)
        os.kill(writer.pid, signal.SIGKILL)
        lines += writer.stdout.read().splitlines()
        writer.wait(timeout=30)
        whole = [line.split() for line in lines if len(line.split()) == 2]
        step, published = max(step, int(whole[-1][0])), max(published, int(whole[-1][1]))
        store = ArtifactStore(place, create=False)
        assert store.verify() == []
        latest = store.run("r").latest()
        assert latest is not None
        assert latest.step >= step  # nothing that was acknowledged is lost
        assert np.all(latest.arrays["W"] == latest.step)
        assert len(latest.history["x"]) == latest.step
        newest = store.load("killed")
        assert newest.version.number >= published
        assert np.all(newest.arrays["W"] == newest.card["seed"])
        history = store.history("killed")
        assert [version.number for version in history] == list(range(newest.version.number, 0, -1))
        assert [store.resolve(version.ref) for version in history] == history
