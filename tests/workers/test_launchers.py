"""Which command starts MPI ranks: MPICH's launcher for one machine only where nobody asked for anything else."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from sparsefleet.models import ModelError
from sparsefleet.workers import EngineError, JobError, LearnJob, run
from sparsefleet.workers.engines import mpi, mpich
from sparsefleet.workers.engines.mpi import find_launcher

MPICH, OPEN_MPI = "HYDRA build details:", "mpirun (Open MPI) 5.0.11"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """install(said, *names): a folder of Python's with an mpirun that says so of itself, and further commands."""
    for name in [*os.environ]:
        if name in mpich.HOSTS or name == "UCX_TLS" or name in mpich.LOOPBACK or name.startswith(mpich.SETTINGS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(mpich, "CONFIGURED", ("~/.mpiexec.hydra.conf",))

    def made(said: str, *more: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name in ("python", "mpirun", *more):
            (folder / name).write_text(f"#!/bin/sh\necho '{said}'\n")
            (folder / name).chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(folder / "python"))
        return folder

    mpi._version.cache_clear()  # pyright: ignore[reportPrivateUsage]
    yield made
    mpi._version.cache_clear()  # pyright: ignore[reportPrivateUsage]


def test_ranks_of_mpich_on_this_machine_listen_on_loopback(install) -> None:
    folder = install(MPICH, "mpiexec.gforker")
    found = find_launcher(None)
    assert found.words == (str(folder / "mpiexec.gforker"),) and found.is_gforker
    assert set(found.env.values()) == {"lo"}
    assert find_launcher(" ") == found


def test_without_gforker_only_the_ranks_do(install) -> None:
    folder = install(MPICH)
    found = find_launcher(None)
    assert found.words == (str(folder / "mpirun"),) and not found.is_gforker
    assert found.env == mpich.LOOPBACK


def test_network_settings_of_the_user_are_kept(install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(MPICH)
    monkeypatch.setenv("FI_TCP_IFACE", "eth0")
    assert find_launcher(None).env == {"UCX_NET_DEVICES": "lo", "FI_SOCKETS_IFACE": "lo"}
    monkeypatch.setenv("UCX_TLS", "rc,self,sm")
    assert find_launcher(None).env == {"FI_SOCKETS_IFACE": "lo"}


@pytest.mark.parametrize("given", ["mpirun", "mpirun -f hosts", "mpirun -hosts a,b"])
def test_a_launcher_that_was_given_is_taken_as_it_is(install, given: str) -> None:
    folder = install(MPICH, "mpiexec.gforker")
    found = find_launcher(given)
    assert found.words == (str(folder / "mpirun"), *given.split()[1:])
    assert found.env == {}


@pytest.mark.parametrize("name", [*mpich.HOSTS, "HYDRA_HOST_FILE", "HYDRA_LAUNCHER", "MPIEXEC_PORTRANGE"])
def test_hosts_of_a_queue_and_settings_of_hydra_are_kept(install, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = install(MPICH, "mpiexec.gforker")
    monkeypatch.setenv(name, "x")
    assert find_launcher(None) == mpi.Launcher((str(folder / "mpirun"),), {})


def test_hydras_own_file_of_settings_is_kept(install, tmp_path: Path) -> None:
    folder = install(MPICH, "mpiexec.gforker")
    (tmp_path / ".mpiexec.hydra.conf").write_text("hostfile=x\n")
    assert find_launcher(None).words == (str(folder / "mpirun"),)


def test_open_mpi_is_left_as_it_is(install) -> None:
    folder = install(OPEN_MPI, "mpiexec.gforker")
    found = find_launcher(None)
    assert found.words[:2] == (str(folder / "mpirun"), "--oversubscribe")
    assert found.env == {}


def test_no_launcher_at_all_is_said(install, monkeypatch: pytest.MonkeyPatch) -> None:
    (install(MPICH) / "mpirun").unlink()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(JobError, match="finds no 'mpirun'"):
        find_launcher(None)


@pytest.mark.e2e
def test_ranks_do_not_outlive_their_launcher(make_data, tmp_path: Path) -> None:
    job = LearnJob.parse({
        "data": make_data(), "atoms": 3, "passes": 100_000, "commit_seconds": 0.1, "restarts": 0,
        "engine": "mpi", "workers": 2, "threads": 1, "store": str(tmp_path / "store"),
    })  # fmt: skip
    ranks: list[psutil.Process] = []

    def follow() -> None:
        for message in run("learn", job):
            if message.kind == "commit" and not ranks:
                (launcher,) = [p for p in psutil.Process().children() if mpi.MAIN in p.cmdline()]
                ranks.extend(launcher.children(recursive=True))
                launcher.send_signal(signal.SIGKILL)

    with pytest.raises(EngineError, match="run the same job again"):
        follow()
    assert len(ranks) >= 2
    assert psutil.wait_procs(ranks, timeout=20)[1] == []


@pytest.mark.e2e
def test_an_error_that_all_ranks_tell_at_once_and_at_length_is_read(make_data, tmp_path: Path) -> None:
    """gforker hands on what ranks print in pieces, so that lines of two ranks would mix."""
    own = (Path(__file__).parents[1] / "own_mean.py").read_text()
    assert "raise ModelError(" in own
    (tmp_path / "long_mean.py").write_text(own.replace("raise ModelError(", "raise ModelError('e' * 5000 + "))
    job = LearnJob.parse({
        "data": make_data(), "model": "long_mean:Mean", "module_path": str(tmp_path), "settings": {"fail_at": 2},
        "atoms": 3, "restarts": 0, "engine": "mpi", "workers": 2, "threads": 1, "store": str(tmp_path / "store"),
    })  # fmt: skip
    with pytest.raises(ModelError, match="e" * 5000):
        list(run("learn", job))


def test_a_launcher_that_cannot_be_started_is_one_line(make_data, tmp_path: Path) -> None:
    broken = tmp_path / "launch"
    broken.write_text("#!/nowhere\n")
    broken.chmod(0o755)
    job = LearnJob.parse({
        "data": make_data(), "atoms": 3, "restarts": 0, "engine": "mpi", "workers": 2, "launcher": str(broken),
        "store": str(tmp_path / "store"),
    })  # fmt: skip
    with pytest.raises(JobError, match=r"launch cannot be started: No such file or directory$"):
        list(run("learn", job))
