"""Real servers and a real browser for the tests of this folder."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Any]:
    """The server and the worker that `sparsefleet up` starts, in a home of their own ($SPARSEFLEET_HOME)."""
    pytest.importorskip("prefect")
    from sparsefleet.pipelines import server

    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("PREFECT_")]:
            patch.delenv(name)
        patch.setenv("SPARSEFLEET_HOME", str(tmp_path_factory.mktemp("server")))
        local = server.up(port=free_port())
        try:
            yield local
        finally:
            server.down()


@pytest.fixture(scope="session")
def fleet() -> Generator[Any]:
    """All services of deploy/compose.yaml, each in network and process namespaces of its own."""
    for needed in ("prefect", "ray", "moto.server", "boto3"):
        pytest.importorskip(needed)
    from .fleet.topology import Topology, absent

    if reason := absent():
        pytest.skip(f"the topology cannot be started: {reason}")
    with Topology() as started:
        yield started


@pytest.fixture(scope="session")
def cli() -> Run:
    """Runs the command `sparsefleet` in a process of its own."""

    def run(*args: object, cwd: Path, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from sparsefleet.pipelines.cli import main; main()", *map(str, args)]
        env = os.environ | environment
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)

    return run


@pytest.fixture(scope="session")
def patches(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small data set of 8x8 patches: a few bars each, and noise."""
    from sparsefleet.storage import create_dataset

    rng = np.random.default_rng(0)
    bars = np.zeros((16, 8, 8))
    bars[range(8), range(8), :] = 1
    bars[range(8, 16), :, range(8)] = 1
    rows = (rng.random((3000, 16)) < 0.12) @ bars.reshape(16, 64) + rng.normal(0, 0.1, (3000, 64))
    uri = str(tmp_path_factory.mktemp("data") / "bars.zarr")
    attributes = {"patch_shape": [8, 8], "row": "bars"}
    layout = {"data": ((64,), "float32")}
    writer = create_dataset(uri, rows=3000, arrays=layout, shard_rows=500, chunk_rows=500, attributes=attributes)
    for shard in writer.shards():
        writer.write(shard, data=rows[shard.slice].astype(np.float32))
    writer.finish()
    return uri


@pytest.fixture
def browser(tmp_path: Path) -> Generator[Any]:
    """Headless Chromium with an empty profile."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (shutil.which(CHROMIUM) and shutil.which(DRIVER)):
        pytest.skip("Chromium and its driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1400,1800",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    try:
        yield driver
    finally:
        driver.quit()
