"""Schedules and stages."""

import pytest
import torch
from sparsefleet.models import ModelError, Schedule, Stage


def test_ramps_are_linear_and_constant_outside():
    schedule = Schedule(passes=11, update_every="pass", batch_rows=1, ramps={"T": ((0.2, 3.0), (0.6, 1.0))})
    values = [schedule.at(i, 11, seed=0, rows=1).get("T", 0) for i in range(11)]
    assert values[:3] == [3, 3, 3]
    assert values[4] == pytest.approx(2)
    assert values[6:] == [1] * 5


def test_a_value_that_is_not_scheduled_reads_as_the_default():
    assert Stage(step=0, steps=1).get("T", 7.0) == 7.0


@pytest.mark.parametrize("ramp", [(), ((0.5, 1.0), (0.2, 1.0)), ((-0.1, 1.0),), ((0, float("nan")),)])
def test_impossible_ramps_are_refused(ramp):
    with pytest.raises(ModelError, match="schedule 'T'"):
        Schedule(passes=1, update_every="pass", batch_rows=1, ramps={"T": ramp})


def test_streams_depend_on_step_and_key_only():
    def draw(step, *key, seed=1):
        return float(torch.rand(1, generator=Stage(step=step, steps=9, seed=seed).generator(*key)))

    assert draw(1, 5) == draw(1, 5)
    assert len({draw(1, 5), draw(2, 5), draw(1, 6), draw(1, 5, seed=2), draw(1)}) == 5
