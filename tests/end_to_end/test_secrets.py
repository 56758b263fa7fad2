"""Planted credentials are nowhere afterwards: not in what commands say, nor in any file or object that they leave."""

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from sparsefleet.pipelines import password
from sparsefleet.pipelines.server import state_folder

pytestmark = pytest.mark.e2e
KEY, SECRET, TOKEN = "PLANTEDKEY0000000001", "planted/secret+0000000000000000000000002", "planted-session-token-3"
BUCKET = "planted"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    """An S3 server with a bucket, and the planted credentials in the environment."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": TOKEN}
    for name, value in {**given, "AWS_ENDPOINT_URL": f"http://{host}:{port}", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=BUCKET)
    yield f"s3://{BUCKET}"
    server.stop()


def objects() -> dict[str, bytes]:
    """Everything in the bucket."""
    import boto3

    client = boto3.client("s3", region_name="us-east-1")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.timeout(600)
def test_planted_credentials_are_nowhere_afterwards(prefect_server, s3, cli, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(300, 6)))
    learn = ["learn", "--data", f"{s3}/rows.zarr", "--store", f"{s3}/store", "--atoms", 3, "--passes", 3]
    group = ["--workers", 2, "--threads", 1, "--no-flow", "--engine"]
    said = ""
    for code, words in [
        (0, ["ingest", "arrays", "rows.npy", "--out", f"{s3}/rows.zarr"]),
        (0, [*learn, "--name", "flow", "--save-job", "job.yaml"]),
        (0, [*learn, "--name", "flow"]),
        (0, [*learn, "--name", "ranks", *group, "mpi"]),
        (0, ["artifacts", "export", "flow", "--store", f"{s3}/store", "--format", "folder", "--out", "out"]),
        (2, ["learn", "--data", "s3://nowhere/rows.zarr", "--store", f"{s3}/store"]),
        (2, ["learn", "--data", f"{s3}/rows.zarr", "--store", f"s3://{KEY}:{SECRET[:8]}@x/store", *group, "mpi"]),
    ]:
        done = cli(*words, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        # What a user types is the user's; only what we add is looked at.
        said += (done.stdout + done.stderr).replace(f"s3://{KEY}:{SECRET[:8]}@x/store", "")
    left = objects() | files(tmp_path) | files(state_folder()) | {"said": said.encode()}
    assert any(name.endswith("prefect.db") for name in left)
    assert any(name.startswith("store/") for name in left)
    assert str(tmp_path / "job.yaml") in left
    del left[str(state_folder() / "password")]
    planted = [KEY, SECRET, TOKEN, password.read(state_folder()).partition(":")[2]]
    assert [name for name, content in left.items() if any(p.encode() in content for p in planted)] == []
