"""Jobs: whatever is thrown at the parser, it answers with a job or with one line."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.models import ModelError
from sparsefleet.workers import EncodeJob, JobError, LearnJob
from sparsefleet.workers.job import apply_assignments, parse_assignment
from sparsefleet.workers.kinds import JOBS

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([*LearnJob.model_fields, *EncodeJob.model_fields])


def one_line(err: BaseException) -> None:
    assert str(err).strip()
    assert "\n" not in str(err)


@settings(deadline=None)
@given(values=st.dictionaries(FIELDS | st.text(max_size=10), ANYTHING, max_size=5), kind=st.sampled_from(list(JOBS)))
def test_anything_is_a_job_or_one_line(values, kind):
    try:
        job = JOBS[kind].parse({"data": "d", **values})
    except JobError as err:
        one_line(err)
    else:
        assert JOBS[kind].parse(job.to_dict()) == job


@settings(deadline=None)
@given(name=st.sampled_from(["gamma", "h_prime", "start", "gama", "dtype", "k"]), value=ANYTHING)
def test_any_setting_is_a_model_or_one_line(name, value):
    try:
        LearnJob.parse({"data": "d", "settings": {name: value}}).build_model()
    except (JobError, ModelError) as err:
        one_line(err)


@settings(deadline=None)
@given(points=ANYTHING)
def test_any_schedule_is_one_or_one_line(points):
    try:
        job = LearnJob.parse({"data": "d", "schedule": {"T": points}})
        job.build_schedule(job.build_model())
    except (JobError, ModelError) as err:
        one_line(err)


@settings(deadline=None)
@given(texts=st.lists(st.text(max_size=20), max_size=4))
def test_any_assignment_is_applied_or_one_line(texts):
    try:
        apply_assignments({"data": "d"}, texts)
    except JobError as err:
        one_line(err)


@settings(deadline=None)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode(errors="replace")))
def test_any_file_is_fields_or_one_line(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        path.write_bytes(content)
        try:
            assert isinstance(LearnJob.from_yaml(path), dict)
        except JobError as err:
            one_line(err)


def test_assignments_reach_nested_fields():
    values = apply_assignments({"data": "d"}, ["model.gamma=4", "schedule.T=[[0, 2], [0.7, 1]]", "atoms=7"])
    job = LearnJob.parse(values)
    assert (job.settings, job.atoms, job.schedule) == ({"gamma": 4}, 7, {"T": [(0, 2), (0.7, 1)]})
    assert parse_assignment("a.b=x=y") == (["a", "b"], "x=y")
    assert parse_assignment("model.clip=None") == parse_assignment("model.clip=null") == (["settings", "clip"], None)


@pytest.mark.parametrize(
    "changes",
    [{"engine": "ray", "workers": 7}, {"threads": 3}, {"commit_seconds": 0}, {"store": "elsewhere"}, {"notes": "x"}],
)
def test_where_and_how_a_run_is_done_is_not_its_identity(changes):
    job = LearnJob.parse({"data": "d"})
    assert LearnJob.parse({"data": "other-path", **changes}).run_id("f") == job.run_id("f")


@pytest.mark.parametrize(
    "changes", [{"atoms": 7}, {"seed": 1}, {"settings": {"gamma": 2}}, {"passes": 3}, {"name": "x"}, {"rows": 5}]
)
def test_what_changes_the_result_is_the_runs_identity(changes):
    job = LearnJob.parse({"data": "d"})
    assert LearnJob.parse({"data": "d", **changes}).run_id("f") != job.run_id("f")
    assert job.run_id("f") != job.run_id("g")
    assert job.run_id("f", "start") != job.run_id("f")
