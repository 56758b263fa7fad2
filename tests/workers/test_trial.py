"""What a trial tells of the updates that it timed, and which ones it works."""

import pytest
from sparsefleet.models import make_model
from sparsefleet.workers import LearnJob
from sparsefleet.workers.trial import POINTS, STEPS_A_POINT, _Work, measure


def work(steps: list[int], seconds: list[float], *, begins: int = 0, per_batch: bool = False) -> _Work:
    made = _Work(make_model("bsc", {"atoms": 4}), {}, 1.0, per_batch)
    made.steps, made.row_seconds, made.rows, made.begins = steps, seconds, [1] * len(steps), begins
    return made


def test_places_of_the_schedule_count_alike_each_by_its_median():
    per_row, first = work([0, 0, 1, 2, 7, 8, 9], [9, 1, 2, 90, 5, 4, 60]).per_row()
    assert (per_row, first) == ((2 + 5) / 2, 9)


def test_the_update_that_begins_the_sets_of_smaller_blocks_is_no_place():
    per_row, first = work([0, 0, 0, 1, 2], [50, 40, 1, 2, 6], begins=1).per_row()
    assert (per_row, first) == (3, 40)


def test_batches_follow_each_other():
    assert work([0, 1, 2, 3], [9, 1, 2, 3], per_batch=True).per_row() == (2, 9)


def test_a_single_update_is_both():
    assert work([0], [3]).per_row() == (3, 3)


@pytest.mark.parametrize("passes", [5, POINTS * STEPS_A_POINT + 2, POINTS * STEPS_A_POINT + 3])
def test_updates_of_a_short_schedule_are_worked_once_each(make_data, tmp_path, monkeypatch, passes):
    """What a set of states costs depends on how often it was updated before."""
    seen: list[list[int]] = []
    own = _Work.per_row

    def per_row(self: _Work) -> tuple[float, float]:
        seen.append(self.steps[self.begins + 1 :])
        return own(self)

    monkeypatch.setattr(_Work, "per_row", per_row)
    settings = {"states": "evolutionary", "evolution": {"size": 8}}
    job = LearnJob(data=make_data(), store=str(tmp_path), atoms=8, passes=passes, settings=settings, threads=1)
    assert measure(job).rows > 0
    if passes <= POINTS * STEPS_A_POINT + 2:
        assert seen == [list(range(passes))]
    else:
        assert len(seen[0]) == len(set(seen[0])) == POINTS * STEPS_A_POINT - 2  # the last place has one update
