"""The clock of a machine jumps while a run works: nothing is lost, and the run goes on once the clock is right."""

import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from sparsefleet.storage import ArtifactStore

from ..waiting import wait_for
from .places import MovedClock, Place, interrupted

pytestmark = pytest.mark.e2e

DAY, HOUR = 86_400, 3_600


@pytest.fixture
def place(tmp_path: Path) -> Generator[Place]:
    made = Place(tmp_path)
    yield made
    made.clean_up()


@pytest.mark.parametrize("jump", [DAY, -HOUR])
def test_a_clock_that_jumps_makes_a_run_wait(place: Place, jump: int) -> None:
    """Ahead of the store's clock, and before the time of the last commit."""
    clock = MovedClock(place.folder)
    command = place.learn(environment=clock.environment)
    place.commits(command)
    clock.move(jump)
    wait_for(lambda: "waiting for it to go on from the last commit" in command.said, 60, lambda: command.said)
    assert "this machine's clock says" in command.said
    kept = place.committed()
    store = ArtifactStore(str(place.store), create=False)
    assert store.verify() == []
    wait_for(lambda: command.said.count(f"continues at update {kept}\n"), 60, lambda: command.said)
    assert place.committed() == kept
    clock.move(0)
    place.commits(command)
    assert place.committed() > kept

    clock.move(jump)
    wait_for(lambda: command.said.count("waiting for it") == 2, 60, lambda: command.said)
    os.killpg(command.process.pid, signal.SIGINT)
    interrupted(command)
    assert store.verify() == []
    clock.move(0)
    code, _, said = place.learn(environment=clock.environment).end()
    assert code == 0, said
    assert "continues at update" in said
    assert place.check_result(place.undisturbed()) == 0.0


def test_a_clock_that_is_wrong_from_the_start_is_said_at_once(place: Place) -> None:
    clock = MovedClock(place.folder)
    clock.move(HOUR)
    code, _, said = place.learn(passes=3, environment=clock.environment).end()
    assert code == 2
    assert "this machine's clock says" in said.splitlines()[-1]
    assert "Traceback" not in said
