"""A small data set and a way to run the command line inside of the test's process."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sparsefleet.storage import create_dataset

from ..networks import bert, llama, texts

__all__ = ["bert", "llama", "texts"]


@dataclass(frozen=True)
class Answer:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Sparsefleet = Callable[..., Answer]


@pytest.fixture
def sparsefleet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sparsefleet:
    """Runs `sparsefleet ARGS` in an empty folder, far from any Prefect server."""
    from sparsefleet.pipelines.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("SPARSEFLEET_HOME", str(tmp_path / "home"))

    def run(*args: object) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main([str(a) for a in args])
        assert "Traceback" not in err.getvalue()
        code = ended.value.code
        return Answer(code if isinstance(code, int) else 1, out.getvalue(), err.getvalue())

    return run


def make_bars(uri: str, rows: int = 600, size: int = 4) -> str:
    """Patches of horizontal and vertical bars with noise; [rows, size**2]."""
    rng = np.random.default_rng(0)
    bars = np.zeros((2 * size, size, size))
    bars[range(size), range(size), :] = 1
    bars[range(size, 2 * size), :, range(size)] = 1
    x = (rng.random((rows, 2 * size)) < 0.25) @ bars.reshape(2 * size, -1) + rng.normal(0, 0.1, (rows, size**2))
    layout = {"data": ((size**2,), "float32")}
    attributes = {"patch_shape": [size, size], "row": "bars"}
    writer = create_dataset(uri, rows=rows, arrays=layout, shard_rows=100, chunk_rows=100, attributes=attributes)
    for shard in writer.shards():
        writer.write(shard, data=x[shard.start : shard.stop].astype(np.float32))
    writer.finish()
    return uri


@pytest.fixture(scope="session")
def bars(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_bars(str(tmp_path_factory.mktemp("bars") / "bars.zarr"))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, bars: str) -> str:
    """A store with two versions of `bars`; `best` points at the first."""
    from sparsefleet.pipelines import learn
    from sparsefleet.workers import LearnJob

    uri = str(tmp_path_factory.mktemp("store") / "artifacts")
    job = {"data": bars, "store": uri, "name": "bars", "atoms": 8, "passes": 5, "aliases": ["best"]}
    learn(LearnJob.parse(job))
    learn(LearnJob.parse(job | {"passes": 8, "aliases": [], "init": "bars@1"}))
    return uri
