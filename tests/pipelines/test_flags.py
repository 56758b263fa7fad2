"""One object is flags, a YAML file and a form: it survives each of them."""

import math

import click
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.pipelines.flags import field_docs, job_flags, parse_job, read_job, to_yaml
from sparsefleet.storage.ingest import ArraysSource, ImagesSource
from sparsefleet.workers import EncodeJob, LearnJob

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=20)
PATHS = TEXT.filter(lambda s: not s.startswith("-"))
NUMBERS = st.floats(0, 1e6, allow_nan=False).map(abs)
VALUES = st.one_of(st.integers(-(2**40), 2**40), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), TEXT)

LEARN = st.builds(
    LearnJob,
    data=PATHS,
    store=PATHS,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True),
    model=st.sampled_from(["bsc", "topk", "my.module:Model"]),
    atoms=st.integers(1, 2**31 - 1),
    settings=st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), VALUES, max_size=3),
    schedule=st.dictionaries(
        st.sampled_from(["T", "ncut"]),
        st.lists(st.tuples(st.floats(0, 1), NUMBERS), min_size=1, max_size=3),
        max_size=2,
    ),
    init=st.none() | PATHS,
    passes=st.none() | st.integers(1, 10**9),
    engine=st.sampled_from(["local", "ray", "mpi"]),
    workers=st.just(1),
    memory_gib=st.none() | st.floats(0.001, 1e6),
    aliases=st.lists(st.sampled_from(["best", "prod"]), max_size=2),
    notes=st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=30),
    seed=st.integers(0, 2**63 - 1),
)


@given(job=LEARN)
def test_yaml_gives_the_same_job_back(job):
    assert LearnJob.parse(yaml.safe_load(to_yaml(job))) == job


@given(job=LEARN)
@settings(max_examples=40)
def test_flags_give_the_same_job_back(job):
    args = []
    for name, field in LearnJob.model_fields.items():
        value = getattr(job, name)
        if isinstance(value, dict):
            shown = yaml.safe_dump(
                job.model_dump(mode="json")[name], default_flow_style=True, allow_unicode=True, width=math.inf
            )
            args.append(f"--set={name}={shown}")
        elif isinstance(value, list):
            args += [f"--{name}={v}" for v in value]
        elif value is not None and value != field.default:
            args.append(f"--{name.replace('_', '-')}={value}")
    assert run_flags(LearnJob, args) == job


@pytest.mark.parametrize("cls", [LearnJob, EncodeJob, ImagesSource, ArraysSource])
def test_every_field_can_be_reached_and_is_explained(cls):
    @click.command()
    @job_flags(cls)
    def command(**_): ...

    flags = {p.name: p for p in command.params}
    docs = field_docs(cls)
    for name, field in cls.model_fields.items():
        if name not in flags:
            assert "dict" in str(field.annotation)
            continue
        if name != "kind":
            assert len(flags[name].help) > 8 or docs.get(name), f"{cls.__name__}.{name} has no words"


def test_flags_override_the_file_and_set_overrides_flags(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("data: a.zarr\natoms: 5\nseed: 1\nsettings: {gamma: 3, h_prime: 6}\n")
    job = run_flags(
        LearnJob, ["--job", str(path), "--atoms=7", "--seed=2", "--set", "seed=3", "--set", "model.gamma=4"]
    )
    assert (job.data, job.atoms, job.seed, job.settings) == ("a.zarr", 7, 3, {"gamma": 4, "h_prime": 6})


def test_a_flag_set_back_to_its_default_overrides_the_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("data: a.zarr\ndictionary: d\nout: o\noverwrite: true\n")
    assert run_flags(EncodeJob, ["--job", str(path), "--no-overwrite"]).overwrite is False


def test_saved_jobs_are_read_back(sparsefleet, tmp_path):
    made = sparsefleet("learn", "--data", "x.zarr", "--atoms", 9, "--set", "model.gamma=2", "--save-job", "job.yaml")
    assert made.code == 0
    again = sparsefleet("learn", "--job", "job.yaml", "--save-job", "again.yaml")
    assert again.code == 0
    assert (tmp_path / "job.yaml").read_text() == (tmp_path / "again.yaml").read_text()
    assert yaml.safe_load((tmp_path / "job.yaml").read_text())["settings"] == {"gamma": 2}


def test_whiten_may_stand_alone():
    job = run_flags(ImagesSource, ["--whiten", "--out", "o"], bare={"whiten": "zca"}, skip=("kind",), sources=["a"])
    assert job.whiten == "zca"


def test_ingest_sources_are_refused_by_name():
    from sparsefleet.pipelines.errors import PipelineError

    for values, said in [
        ({"sources": ["a"], "out": "o", "ptch": 8}, "did you mean 'patch'"),
        ({"sources": ["a"]}, "out is needed"),
        ({"sources": ["a"], "out": "o", "patch": 1}, "patch=1"),
    ]:
        with pytest.raises(PipelineError, match=said):
            parse_job(ImagesSource, values)


def run_flags(cls, args, bare=None, skip=(), **fixed):
    """The job that these arguments give."""

    @click.command()
    @job_flags(cls, bare=bare, skip=skip)
    def command(**given):
        return read_job(cls, given, base=fixed)

    return command.main(args, standalone_mode=False)
