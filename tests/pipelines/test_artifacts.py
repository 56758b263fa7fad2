"""`sparsefleet artifacts …` on a real store."""

import shutil

import numpy as np
import pytest


@pytest.fixture
def own(store, tmp_path):
    """A copy of the store that a test may change."""
    return shutil.copytree(store, tmp_path / "own")


def test_list_and_history(sparsefleet, store):
    listed = sparsefleet("artifacts", "list", "--store", store)
    assert listed.code == 0
    assert "bars@2" in listed.out
    assert "free_energy" in listed.out
    history = sparsefleet("artifacts", "history", "bars", "--store", store, "--json").json
    assert [v["ref"] for v in history] == ["bars@2", "bars@1"]
    assert history[1]["aliases"] == ["best"]
    newest = sparsefleet("artifacts", "history", "bars", "--store", store, "--limit", "1")
    assert "bars@2" in newest.out
    assert "bars@1" not in newest.out
    assert "1 older" in newest.err


def test_show(sparsefleet, store, tmp_path):
    text = sparsefleet("artifacts", "show", "bars@best", "--store", store, "--figures", "pics")
    assert text.code == 0
    assert "bars@1 (best)" in text.out
    assert "W [16, 8]" in text.out
    assert {p.name for p in (tmp_path / "pics").iterdir()} == {"atoms.png", "convergence.png"}
    found = sparsefleet("artifacts", "show", "bars", "--store", store, "--json").json
    assert found["ref"] == "bars@2"
    assert found["card"]["job"]["init"] == "bars@1"


def test_diff(sparsefleet, store):
    text = sparsefleet("artifacts", "diff", "bars@1", "bars@2", "--store", store)
    assert "job.passes" in text.out
    assert "W: relative distance" in text.out
    found = sparsefleet("artifacts", "diff", "bars@1", "bars@2", "--store", store, "--json").json
    assert found["job"]["passes"] == [5, 8]


def test_alias_and_rollback(sparsefleet, own):
    assert sparsefleet("artifacts", "alias", "bars", "--store", own, "--json").json == {"best": 1, "latest": 2}
    sparsefleet("artifacts", "alias", "bars", "best", "2", "--store", own)
    assert sparsefleet("artifacts", "alias", "bars", "--store", own, "--json").json == {"best": 2, "latest": 2}
    sparsefleet("artifacts", "alias", "bars", "best", "--remove", "--store", own)
    assert sparsefleet("artifacts", "alias", "bars", "--store", own, "--json").json == {"latest": 2}
    assert sparsefleet("artifacts", "alias", "bars", "best", "--store", own).code == 2
    assert sparsefleet("artifacts", "rollback", "bars", "1", "--store", own).out.startswith("bars@3")


@pytest.mark.parametrize("bad", [["alias", "bars", "best", "9"], ["rollback", "bars", "9"], ["show", "bras"]])
def test_what_is_not_there(sparsefleet, store, bad):
    answer = sparsefleet("artifacts", *bad, "--store", store)
    assert answer.code == 2
    assert answer.err.startswith("error: ")


def test_export(sparsefleet, store, tmp_path):
    made = sparsefleet("artifacts", "export", "bars@1", "--store", store, "--format", "npz", "--json")
    assert made.json == {"files": ["bars-v1.npz"]}
    with np.load(tmp_path / "bars-v1.npz") as arrays:
        assert set(arrays.files) == {"W", "pi", "sigma", "free_energy"}
        assert arrays["W"].shape == (16, 8)
    again = sparsefleet("artifacts", "export", "bars@1", "--store", store, "--format", "npz")
    assert again.code == 2
    assert sparsefleet("artifacts", "export", "bars@1", "--store", store, "--overwrite").code == 0


def test_verify_lineage_doctor_and_gc(sparsefleet, own):
    assert sparsefleet("artifacts", "verify", "--store", own).code == 0
    assert sparsefleet("artifacts", "lineage", "bars", "--store", own).out.count("bars@") == 2
    assert sparsefleet("artifacts", "doctor", "--store", own, "--json").json["kind"] == "local"
    counted = sparsefleet("artifacts", "gc", "--store", own, "--older-than-days", "0", "--json").json
    assert counted["dry_run"] is True
    assert counted["bytes"] > 0  # the checkpoints of finished runs
    sparsefleet("artifacts", "gc", "--store", own, "--older-than-days", "0", "--yes")
    assert sparsefleet("artifacts", "verify", "--store", own).code == 0


def test_damage_is_exit_code_one(sparsefleet, own):
    chunk = max((p for p in own.rglob("chunks/*")), key=lambda p: p.stat().st_size)
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 255
    chunk.write_bytes(content)
    answer = sparsefleet("artifacts", "verify", "--store", own, "--json")
    assert answer.code == 1
    assert answer.json["problems"]
