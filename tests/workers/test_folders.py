"""Temporary folders of killed processes are removed by the next one; those of living ones are left alone."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from sparsefleet.workers.engines import folders
from sparsefleet.workers.engines.folders import temporary_folder

STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
held = open(sys.argv[1])
print(flush=True)
signal.pause()
"""
HOLD = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from sparsefleet.workers.engines.folders import temporary_folder
with temporary_folder("test") as folder:
    (folder / "file").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(folders, "GRACE_SECONDS", -1.0)
    return tmp_path


def test_a_folder_ends_with_its_context(place: Path) -> None:
    with temporary_folder("test") as folder:
        assert folder.parent == place
        assert folder.name.startswith("sf-test-")
    assert not list(place.iterdir())


def test_only_what_a_dead_process_left_is_removed(place: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    held = Path(holder.stdout.readline().strip())
    other = place / "sf-test-of-another-program"
    other.mkdir()
    try:
        with temporary_folder("test"):
            assert (held / "file").exists()
        holder.kill()
        holder.wait()
        assert held.exists()
        with temporary_folder("test"):
            assert not held.exists()
        assert other.exists()
    finally:
        holder.kill()
        holder.communicate()


def test_a_folder_that_was_just_made_is_left_to_its_owner(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    young = place / "sf-test-young"
    young.mkdir()
    (young / "owner").touch()
    monkeypatch.setattr(folders, "GRACE_SECONDS", 60.0)
    with temporary_folder("test"):
        assert young.exists()
    os.utime(young, (0, 0))
    with temporary_folder("test"):
        assert not young.exists()


def test_who_holds_files_of_a_folder_open_is_ended(place: Path) -> None:
    command = [sys.executable, "-c", STUBBORN]
    with temporary_folder("test") as folder:
        (folder / "file").touch()
        (place / "other").touch()
        inside, outside = (
            subprocess.Popen([*command, str(path)], stdout=subprocess.PIPE)
            for path in (folder / "file", place / "other")
        )
        try:
            for process in (inside, outside):
                assert process.stdout is not None
                process.stdout.readline()
            folders.end_users(folder, 0.5)
            assert inside.wait(10) == -9
            assert outside.poll() is None
        finally:
            for process in (inside, outside):
                process.kill()
                process.wait()
