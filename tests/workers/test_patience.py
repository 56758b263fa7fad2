"""A server that is away for a while is waited for, one that is away for good or from the start is not."""

from collections.abc import Generator

import pytest
from sparsefleet.storage import Unreachable
from sparsefleet.workers import EngineError, LearnJob, Progress
from sparsefleet.workers.engines import patience
from sparsefleet.workers.engines.patience import patiently, with_patience

JOB = LearnJob(data="data.zarr", atoms=3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.0)


def lives(*endings: int, says: str = "commit"):
    """Attempts that say one message and then lose the server, as often as there are endings."""
    left = list(endings)

    def attempt(job: LearnJob) -> Generator[Progress, None, None]:
        yield Progress(kind="start")
        if left:
            yield Progress(kind=says, step=left.pop(0))
            raise Unreachable("s3://b/store: away")
        yield Progress(kind="done")

    return attempt


def test_goes_on_from_the_last_commit_and_says_so_once_each_time():
    said = [(m.kind, m.step) for m in with_patience(JOB, lives(1, 2))]
    again = [("start", 0), ("commit", 1), ("restart", 1), ("start", 0), ("commit", 2), ("restart", 2)]
    assert said == [*again, ("start", 0), ("done", 0)]


def test_what_is_away_from_the_start_is_said_at_once():
    def attempt(_: LearnJob) -> Generator[Progress, None, None]:
        raise Unreachable("s3://b/store: away")
        yield

    with pytest.raises(Unreachable, match="away"):
        list(with_patience(JOB, attempt))


def test_gives_up_when_nothing_was_committed_for_too_long(monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(
        EngineError, match=r"s3://b/store: away; gave up after 0 s\. The state of the last commit is kept"
    ):
        list(with_patience(JOB, lives(1, 1, 1, 1, says="step")))


def test_a_call_is_made_again_until_it_is_answered(monkeypatch):
    left = [1, 2]

    def call() -> str:
        if left:
            raise Unreachable(f"away {left.pop()}")
        return "there"

    assert patiently(call) == "there"
    left = [1, 2]
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", -1.0)
    with pytest.raises(Unreachable, match="away 2"):
        patiently(call)
