"""The plan: real trials in a process of their own, whole blocks, errors in the user's words."""

import pytest
from sparsefleet.models import ModelError
from sparsefleet.pipelines.planning import lines, predict
from sparsefleet.workers import LearnJob
from sparsefleet.workers.plan import plan
from sparsefleet.workers.trial import trial

EVOLUTIONARY = {"states": "evolutionary", "evolution": {"size": 12, "parents": 4, "children": 2}}


@pytest.mark.parametrize(
    ("model", "settings"),
    [("bsc", {}), ("topk", {"k": 4}), ("relu", {"resample": [0.25, 0.5]}), ("bsc", EVOLUTIONARY)],
    ids=["pass", "batch", "resampled", "kept"],
)
def test_a_trial_works_and_the_plan_follows_it(bars, tmp_path, model, settings):
    job = LearnJob(data=bars, model=model, atoms=8, settings=settings, passes=10, threads=1, store=str(tmp_path / "s"))
    found = predict(job)
    tried = found["trial"]
    assert tried["rows"] > 0 and tried["seconds_per_row"] > 0 and tried["seconds_per_update"] > 0
    assert found["memory_bytes_per_worker"] >= tried["peak_bytes"] >= tried["base_bytes"] > 0
    assert found["seconds"] >= 600 * 10 / found["rows_per_second_per_worker"]
    assert found["scale"]["workers"] == 1000
    assert set(found["scale"]["allreduce_seconds"]) == {"ring", "halving", "tree", "gather"}
    assert "a trial" in lines(job, found)["memory per worker"]
    kept = settings is EVOLUTIONARY
    assert (found["kept_bytes"] > 600 * 12) == kept == ("more a commit for what is kept" in lines(job, found)["store"])
    # Nothing was published, and the store was not even made.
    assert not (tmp_path / "s").exists()


def test_workers_beyond_the_blocks_change_nothing(bars):
    job = LearnJob(data=bars, atoms=8, batch_rows=200, engine="mpi", workers=3, threads=1)
    three, more = predict(job, 1000.0), predict(job.model_copy(update={"workers": 9}), 1000.0)
    assert three["rows_per_worker"] == more["rows_per_worker"] == 200
    assert (three["busy_workers"], more["busy_workers"]) == (3, 3)
    assert more["seconds"] >= three["seconds"]
    assert "6 of them without rows" in lines(job, more)["workers"]


def test_without_a_trial_there_is_no_time(sparsefleet, bars):
    found = sparsefleet("plan", "--data", bars, "--atoms", 8, "--no-probe", "--json").json
    assert "seconds" not in found and "trial" not in found
    assert found["memory_bytes_per_worker"] == plan(LearnJob(data=bars, atoms=8)).memory_bytes_per_worker
    assert "--probe" in sparsefleet("plan", "--data", bars, "--atoms", 8, "--no-probe").out


def test_an_error_of_the_trial_keeps_its_words(bars):
    job = LearnJob(data=bars, model="topk", atoms=8, settings={"k": 9})
    with pytest.raises(ModelError, match="k=9"):
        trial(job)
