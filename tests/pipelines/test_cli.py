"""The command line's own promises: quick help, exit codes, one line for a mistake."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from sparsefleet.pipelines.cli import SECTIONS, cli
from sparsefleet.pipelines.commands import resume
from sparsefleet.pipelines.running import PROGRAMS, run_name
from sparsefleet.storage import ArtifactStore, NotFound, create_dataset

from ..waiting import wait_for

HEAVY = {"torch", "ray", "prefect", "zarr", "dask", "icechunk", "pydantic", "matplotlib", "numpy", "mpi4py", "rich"}
RUN = "from sparsefleet.pipelines.cli import main; main()"


def all_commands(group: click.Group, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        yield (*path, name)
        if isinstance(found, click.Group):
            yield from all_commands(found, (*path, name))


@pytest.mark.parametrize("path", list(all_commands(cli)), ids=" ".join)
def test_every_command_explains_itself(sparsefleet, path):
    answer = sparsefleet(*path, "--help")
    assert answer.code == 0
    assert answer.out.startswith(f"Usage: sparsefleet {' '.join(path)}")
    assert "Options:" in answer.out


@pytest.mark.parametrize("path", list(all_commands(cli)), ids=" ".join)
def test_every_command_that_answers_speaks_json(path):
    group = cli
    for name in path[:-1]:
        group = group.get_command(click.Context(group), name)
    command = group.get_command(click.Context(group), path[-1])
    if isinstance(command, click.Group) or path == ("serve",):
        return
    assert "--json" in {option for parameter in command.params for option in parameter.opts}


def test_the_table_of_commands_is_complete():
    folder = Path(sys.modules["sparsefleet.pipelines.cli"].__file__).parent / "commands"
    files = {p.stem for p in folder.glob("*.py")} - {"__init__", "shared", "imports"}
    assert files == {name for section in SECTIONS.values() for name in section}


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["artifacts", "--help"], ["--no-such-option"]])
def test_help_imports_nothing_heavy(args, tmp_path):
    code = (
        "import sys\n"
        "from sparsefleet.pipelines.cli import main\n"
        "try:\n"
        f"    main({args!r})\n"
        "except SystemExit:\n"
        "    print('\\n' + ' '.join(m for m in sys.modules if '.' not in m))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())


def nan_rows(uri: str) -> str:
    layout = {"data": ((4,), "float32")}
    writer = create_dataset(uri, rows=4, arrays=layout, shard_rows=4, chunk_rows=4, attributes={})
    for shard in writer.shards():
        writer.write(shard, data=np.ones((4, 4), np.float32))
    return uri  # never finished


BAD = {
    "no command": (["lern"], "No such command 'lern'"),
    "unknown option": (["learn", "--atms", "3"], "--atoms"),
    "no data": (["learn"], "data is needed"),
    "missing data": (["learn", "--data", "nowhere.zarr"], "no data set at"),
    "unfinished data": (["learn", "--data", "{unfinished}"], "unfinished"),
    "unknown model": (["learn", "--data", "{bars}", "--model", "bcs"], "did you mean 'bsc'?"),
    "model that cannot be imported": (["learn", "--data", "{bars}", "--model", "nomod:Cls"], "nomod"),
    "unknown engine": (["learn", "--data", "{bars}", "--engine", "rya"], "'ray'"),
    "no atoms": (["learn", "--data", "{bars}", "--atoms", "0"], "atoms=0"),
    "atoms in words": (["learn", "--data", "{bars}", "--atoms", "many"], "'many' is not a valid integer"),
    "unknown setting": (["learn", "--data", "{bars}", "--set", "model.gama=3"], "did you mean 'gamma'?"),
    "setting out of range": (["learn", "--data", "{bars}", "--set", "model.gamma=99"], "gamma=99"),
    "unknown field": (["learn", "--data", "{bars}", "--set", "pases=3"], "did you mean 'passes'?"),
    "no assignment": (["learn", "--data", "{bars}", "--set", "gamma"], "KEY=VALUE"),
    "unknown ramp": (["learn", "--data", "{bars}", "--set", "schedule.Q=[[0,1]]"], "schedule.Q"),
    "bad name": (["learn", "--data", "{bars}", "--name", "a/b"], "name='a/b'"),
    "missing start values": (["learn", "--data", "{bars}", "--init", "none.npz"], "none.npz"),
    "missing start artifact": (["learn", "--data", "{bars}", "--init", "bars@9"], "store"),
    "no such job file": (["learn", "--job", "none.yaml"], "none.yaml"),
    "job file that is no job": (["learn", "--job", "{list}"], "must hold fields"),
    "more memory than there is": (["learn", "--data", "{bars}", "--atoms", "100", "--memory-gib", "0.01"], "GiB"),
    "plan of nothing": (["plan", "--data", "nowhere.zarr"], "no data set at"),
    "codes of nothing": (["encode", "--data", "{bars}", "--out", "c.zarr", "--dictionary", "bars"], "store"),
    "onto itself": (["encode", "--data", "{bars}", "--out", "{bars}", "--dictionary", "bars"], "data set itself"),
    "no source": (["ingest", "images", "--out", "x.zarr"], "sources"),
    "missing source": (["ingest", "images", "none.png", "--out", "x.zarr"], "none.png"),
    "missing array": (["ingest", "arrays", "none.npy", "--out", "x.zarr"], "none.npy"),
    "nowhere to": (["ingest", "arrays", "none.npy"], "out is needed"),
    "no image": (["ingest", "images", "{list}", "--out", "x.zarr"], "list.yaml"),
    "no store": (["artifacts", "list"], "no artifact store"),
    "no store to show": (["artifacts", "show", "bars"], "no artifact store"),
    "no data set": (["data", "show", "nowhere.zarr"], "no data set at"),
    "unknown model to show": (["models", "topc"], "topk"),
    "no server": (["logs", "abc"], "sparsefleet up"),
    "no server to submit to": (["learn", "--data", "{bars}", "--submit", "local"], "sparsefleet up"),
    "no export of that kind": (["artifacts", "export", "bars", "--format", "npy"], "'saelens'"),
    "nothing to resume": (["resume", "abc"], "abc"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(sparsefleet, bars, tmp_path, name):
    (tmp_path / "list.yaml").write_text("- 1\n")
    places = {"bars": bars, "list": str(tmp_path / "list.yaml"), "unfinished": nan_rows(str(tmp_path / "half.zarr"))}
    before = set(os.listdir(tmp_path))
    args, said = BAD[name]
    answer = sparsefleet(*(a.format(**places) for a in args))
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("error: ")
    assert said in answer.err
    assert set(os.listdir(tmp_path)) <= before | {"home"}


def test_a_home_that_cannot_be_made_is_named(sparsefleet, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSEFLEET_HOME", str(tmp_path / "file" / "home"))
    answer = sparsefleet("up")
    assert answer.code == 2
    assert "SPARSEFLEET_HOME" in answer.err.splitlines()[-1]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_run_of_every_program_can_be_resumed_and_has_a_flow_run_name(program):
    values = {"kind": "arrays", "sources": ["x"], "data": "d", "dictionary": "a", "out": "o"}
    job = resume._job_class(program, values)
    assert run_name(program, job.model_construct(**values, **({"name": "n"} if program == "learn" else {})))


def test_a_reader_that_goes_away_is_no_error(tmp_path, bars):
    command = [sys.executable, "-c", RUN, "data", "show", bars]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == ""


def unfinished_runs(uri):
    try:
        return ArtifactStore(str(uri), create=False).runs()
    except NotFound:  # not made yet
        return []


def test_interrupted_learning_keeps_its_state_and_says_how_to_continue(tmp_path, bars):
    job = ["--data", bars, "--atoms", "8", "--passes", "60", "--name", "cut", "--no-flow", "--json"]
    command = [sys.executable, "-c", RUN, "learn", *job, "--commit-seconds", "0"]
    slow = {**os.environ, "SPARSEFLEET_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [*command, "--set", "passes=200000"],
        cwd=tmp_path,
        env=slow,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: started.poll() is not None or any(r.step > 0 for r in unfinished_runs(tmp_path / "artifacts")))
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert started.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert "sparsefleet resume " in err.splitlines()[-1]

    asked = subprocess.run(
        [sys.executable, "-c", RUN, "status", "--json"],
        cwd=tmp_path,
        env=slow,
        capture_output=True,
        text=True,
        check=True,
    )
    unfinished = json.loads(asked.stdout)["unfinished"]
    assert [r["name"] for r in unfinished] == ["cut"]
    assert unfinished[0]["run"] in err
    assert unfinished[0]["step"] > 0
