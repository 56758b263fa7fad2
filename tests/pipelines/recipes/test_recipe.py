"""Recipes: all that are shipped can be run, whatever else is written gets one clear line."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.pipelines.errors import PipelineError
from sparsefleet.pipelines.recipes import Recipe, load_recipe, recipe_names
from sparsefleet.pipelines.recipes.checks import CHECKS
from sparsefleet.storage import ArtifactStore, StorageError, open_dataset
from sparsefleet.workers import JobError, LearnJob

GOOD = {"about": "x", "source": {"kind": "generated"}, "job": {"model": "bsc", "atoms": 10}}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def one_line(err: BaseException) -> None:
    assert str(err).strip()
    assert "\n" not in str(err)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_makes_a_job(name):
    recipe = load_recipe(name)
    job = LearnJob.parse(recipe.values())
    job.build_schedule(job.build_model())
    second = recipe.second(job, f"{name}@1")
    if second is not None:
        second.build_schedule(second.build_model())
        assert second.init == f"{name}@1"
    assert recipe.check in CHECKS
    assert recipe.ingest("x.zarr").out == "x.zarr"
    assert all(low <= high for low, high in recipe.expect.values())


@settings(deadline=None)
@given(values=st.dictionaries(st.sampled_from([*Recipe.model_fields]) | st.text(max_size=8), ANYTHING, max_size=5))
def test_anything_is_a_recipe_or_one_line(values):
    try:
        Recipe.parse("mine", GOOD | values)
    except (PipelineError, JobError, StorageError) as err:
        one_line(err)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chek": "fields"}, "did you mean 'check'"),
        ({"job": {"modl": "bsc"}}, "did you mean 'model'"),
        ({"source": {"kind": "generatd"}}, "did you mean 'generated'"),
        ({"source": {"kind": "generated", "sgma": 1}}, "did you mean 'sigma'"),
        ({"then": {"pases": 3}}, "did you mean 'passes'"),
        ({"about": ""}, "about"),
    ],
)
def test_a_mistake_gets_the_nearest_name(change, said):
    with pytest.raises((PipelineError, JobError), match=said):
        Recipe.parse("mine", GOOD | change)


def test_unknown_recipes(sparsefleet, tmp_path):
    answer = sparsefleet("learn", "--recipe", "bars-bcs")
    assert answer.code == 2
    assert "did you mean 'bars-bsc'" in answer.err
    answer = sparsefleet("recipes", "show", "none.yaml")
    assert answer.code == 2
    assert "none.yaml" in answer.err
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "must hold fields" in sparsefleet("learn", "--recipe", "list.yaml").err
    (tmp_path / "bad.yaml").write_text("{")
    assert "is not YAML" in sparsefleet("learn", "--recipe", "bad.yaml").err


def test_recipes_are_listed_and_shown(sparsefleet):
    assert set(sparsefleet("recipes", "--json").json) == set(recipe_names())
    assert "bars-bsc" in sparsefleet("recipes").out
    shown = sparsefleet("recipes", "show", "bars-gsc")
    assert shown.out.startswith("# bars-gsc: ")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        path.write_text(shown.out)
        assert LearnJob.parse(LearnJob.from_yaml(path)).model == "gsc"


def test_a_recipe_runs_from_nothing_to_its_outcome(sparsefleet, tmp_path):
    command = ["learn", "--recipe", "bars-bsc", "--no-flow", "--passes", "60"]
    trial = sparsefleet(*command, "--dry-run")
    assert trial.code == 0
    assert not (tmp_path / "data").exists()

    answer = sparsefleet(*command, "--json")
    assert answer.code == 0
    assert answer.json["version"] == "bars-bsc@1"
    assert answer.json["steps"] == 60
    outcome = answer.json["outcome"]
    assert outcome["values"]["found"] >= 8
    assert outcome["met"] == (not outcome["unmet"])
    assert open_dataset(str(tmp_path / "data" / "bars-bsc.zarr")).rows == 1000

    again = sparsefleet(*command, "--passes", "5")
    assert "of 10 true atoms found" in again.out
    assert "bars-bsc@2" in again.out
    other = sparsefleet(*command, "--set", "source.sigma=1")
    assert other.code == 2
    assert "was made in another way (sigma=2.0)" in other.err


def test_a_second_run_goes_on_from_the_first(sparsefleet, tmp_path):
    own = tmp_path / "two.yaml"
    own.write_text(
        "about: two runs\nsource: {kind: generated, rows: 200}\njob: {model: bsc, atoms: 10, passes: 3, starts: 2}\n"
        "then: {passes: 2, settings: {h_prime: 10, gamma: 2}}\nexpect: {free_energy: [0, 1]}\n"
    )
    answer = sparsefleet("learn", "--recipe", own, "--no-flow", "--json", "--set", "source.rows=300")
    assert answer.json["version"] == "two@2"
    assert answer.json["outcome"]["met"] is False
    assert "free_energy is -" in answer.json["outcome"]["unmet"][0]
    store = ArtifactStore(str(tmp_path / "artifacts"))
    assert store.runs() == []
    assert store.card("two@2")["job"]["init"] == "two@1"
    starts = store.card("two@1")["starts"]
    assert [start["seed"] for start in starts] == [0, 1000]
    best = max(starts, key=lambda start: start["free_energy"])
    assert store.card("two@1")["seed"] == best["seed"]
    assert store.card("two@1")["metrics"]["free_energy"] == best["free_energy"]


def test_a_recipe_of_arrays_works_twice(sparsefleet, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(100, 5)))
    (tmp_path / "own.yaml").write_text(
        "about: rows\nsource: {kind: arrays, sources: [x.npy]}\njob: {model: bsc, atoms: 6, passes: 1}\n"
    )
    for version in (1, 2):
        answer = sparsefleet("learn", "--recipe", "own.yaml", "--no-flow", "--json")
        assert answer.code == 0, answer.err
        assert answer.json["version"] == f"own@{version}"
    other = sparsefleet("learn", "--recipe", "own.yaml", "--no-flow", "--set", "source.missing=true")
    assert "was made in another way (missing=False)" in other.err


def test_json_before_a_subcommand_is_not_swallowed(sparsefleet):
    answer = sparsefleet("recipes", "--json", "show", "bars-bsc")
    assert answer.code == 2
    assert answer.out == ""
    assert "write --json after the subcommand" in answer.err


@pytest.mark.parametrize("then", ["", "then: {passes: 2}\n"])
def test_what_a_work_pool_leaves_out_is_said(sparsefleet, tmp_path, monkeypatch, then):
    from sparsefleet.pipelines import submitting

    done = submitting.Submitted("0123456789", "two", "pool", "http://127.0.0.1")
    monkeypatch.setattr(submitting, "submit", lambda *_: done)
    (tmp_path / "two.yaml").write_text(
        f"about: x\nsource: {{kind: generated, rows: 50}}\njob: {{model: bsc, atoms: 10}}\n{then}"
    )
    answer = sparsefleet("learn", "--recipe", "two.yaml", "--no-flow", "--submit", "pool")
    assert answer.code == 0, answer.err
    assert "without its second run and its check" in answer.err if then else "without its check" in answer.err


def test_an_interrupted_second_run_is_continued_by_resume_only(sparsefleet, tmp_path, monkeypatch):
    from sparsefleet.pipelines import learning

    (tmp_path / "two.yaml").write_text(
        "about: x\nsource: {kind: generated, rows: 200}\njob: {model: bsc, atoms: 10, passes: 2}\nthen: {passes: 3}\n"
    )
    real = learning.publish

    def interrupted(job, fit):
        if job.init:
            raise KeyboardInterrupt
        return real(job, fit)

    with monkeypatch.context() as patch:
        patch.setattr(learning, "publish", interrupted)
        answer = sparsefleet("learn", "--recipe", "two.yaml", "--no-flow")
    assert answer.code == 130
    said = answer.err.splitlines()[-1]
    assert "same command" not in said
    resumed = sparsefleet(*said[said.index("sparsefleet ") :].split()[1:], "--no-flow", "--json")
    assert resumed.json["version"] == "two@2"
    assert ArtifactStore(str(tmp_path / "artifacts")).card("two@2")["parents"][0]["ref"] == "two@1"


def test_missing_sources_say_what_to_install(sparsefleet):
    answer = sparsefleet("learn", "--recipe", "sound-dsc", "--no-flow", "--set", "source.sources=[nowhere]")
    assert answer.code == 2
    assert "asterisk-core-sounds-en-wav" in answer.err
