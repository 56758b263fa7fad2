"""`--module-path`: a dictionary whose model is the user's own goes through every command that loads it."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

NAME = "own_ways_for_this_test"
SOURCE = """
from dataclasses import dataclass
from sparsefleet.models.autoencoders.relu import ReLU
from sparsefleet.models.autoencoders.topk import TopK

@dataclass(frozen=True, kw_only=True)
class Even(TopK):
    "The k largest of even latents."

    def select(self, params, u, raw):
        u = u.clone()
        u[:, 1::2] = -1
        return super().select(params, u, raw)

@dataclass(frozen=True, kw_only=True)
class Plain(ReLU):
    "A ReLU by another name."
"""
REMEDY = f"cannot import {NAME!r} (No module named {NAME!r}); --module-path names the folder that holds it"


@pytest.fixture
def fresh(sparsefleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs commands as processes of their own would: nothing that one has imported is there for the next."""
    plug = tmp_path / "plug"
    plug.mkdir()
    (plug / f"{NAME}.py").write_text(SOURCE)
    path = [place for place in sys.path if place]

    def run(*args: object):
        monkeypatch.setattr(sys, "path", list(path))
        monkeypatch.delitem(sys.modules, NAME, raising=False)
        return sparsefleet(*args)

    yield run
    sys.modules.pop(NAME, None)


def learned(fresh, bars: str, kind: str):
    flags = ["--data", bars, "--model", f"{NAME}:{kind}", "--atoms", 8, "--passes", 2, "--name", "mine"]
    flags += ["--set", "model.k=2"] if kind == "Even" else []
    said = fresh("learn", *flags, "--module-path", "plug")
    assert said.code == 0, said.err
    return said


def test_it_is_learned_encoded_and_interpreted(fresh, bars, tmp_path):
    said = learned(fresh, bars, "Plain")
    # The line that was printed works as it is.
    line = re.search(r"sparsefleet (encode .*)", said.err)
    assert line and line[1].endswith(" --module-path plug")
    assert fresh(*shlex.split(line[1])).code == 0
    commands = {
        "encode": ["encode", "--data", bars, "--dictionary", "mine", "--out", "c.zarr"],
        "interpret": ["interpret", "--data", bars, "--dictionary", "mine", "--out", "mine.html"],
        "models": ["models", f"{NAME}:Plain"],
    }
    for name, command in commands.items():
        refused = fresh(*command)
        assert refused.code == 2 and refused.err == f"error: model '{NAME}:Plain': {REMEDY}\n", name
        assert fresh(*command, "--module-path", "plug").code == 0, name
    assert (tmp_path / "mine.html").is_file()


def test_by_default_it_is_looked_for_in_the_current_folder(fresh, bars, tmp_path, monkeypatch):
    said = learned(fresh, bars, "Even")
    assert "--module-path plug" in said.err
    monkeypatch.chdir(tmp_path / "plug")
    flags = ["--data", bars, "--dictionary", "mine", "--store", "../artifacts", "--out", "mine.html"]
    assert fresh("interpret", *flags).code == 0
    said = fresh("artifacts", "export", "mine", "--store", "../artifacts", "--format", "saelens")
    assert said.code == 2 and "which saelens does not know: export as npz or safetensors" in said.err
    # What needs no model asks for none.
    monkeypatch.chdir(tmp_path)
    assert fresh("artifacts", "export", "mine", "--out", "mine.npz").code == 0
    assert fresh("artifacts", "show", "mine").code == 0
    assert "W_enc" in np.load(tmp_path / "mine.npz")


def test_a_version_brings_no_folder_of_its_own(fresh, bars, tmp_path, monkeypatch):
    """Its card says where the model lay; whoever uses the version says it again."""
    learned(fresh, bars, "Even")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    flags = ["--data", bars, "--dictionary", "mine", "--store", "../artifacts", "--out", "mine.html"]
    assert REMEDY in fresh("interpret", *flags).err
    assert str(tmp_path / "plug") not in sys.path


def test_a_module_that_lacks_another_is_not_looked_for_elsewhere(fresh, tmp_path):
    (tmp_path / "plug" / f"{NAME}.py").write_text("import no_such_module_at_all")
    said = fresh("models", f"{NAME}:Even", "--module-path", "plug")
    assert said.code == 2
    assert said.err == f"error: model '{NAME}:Even': cannot import {NAME!r} (No module named 'no_such_module_at_all')\n"
