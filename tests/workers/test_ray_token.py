"""A Ray cluster that the engine starts: only who has its token is heard, and the token is nowhere to be read."""

import os
from pathlib import Path

import psutil
import pytest
from sparsefleet.workers import LearnJob, run

pytestmark = pytest.mark.e2e
ASK = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
TOKEN = "RAY_AUTH_TOKEN"


def test_a_cluster_of_ours_answers_only_its_own_token(make_data, tmp_path: Path, monkeypatch):
    ray, grpc = pytest.importorskip("ray"), pytest.importorskip("grpc")
    monkeypatch.delenv(TOKEN, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")

    def asked(token: str | None) -> grpc.StatusCode:
        metadata = [("authorization", f"Bearer {token}")] if token else []
        with grpc.insecure_channel(address) as channel:
            try:
                channel.unary_unary(ASK)(b"", metadata=metadata, timeout=60)
            except grpc.RpcError as err:
                return err.code()
        return grpc.StatusCode.OK

    job = LearnJob(data=make_data(), store=str(tmp_path / "s"), atoms=3, passes=3, engine="ray", workers=1, threads=1)
    messages = run("learn", job)
    try:
        next(messages)
        address, token = ray.get_runtime_context().gcs_address, os.environ[TOKEN]
        refused = grpc.StatusCode.UNAUTHENTICATED
        assert [asked(None), asked("0" * 64), asked(token)] == [refused, refused, grpc.StatusCode.OK]
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        assert not [p for p in family if token in " ".join(p.cmdline())]
        logs = [p for p in Path(ray._private.worker._global_node.get_session_dir_path()).rglob("*") if p.is_file()]
        assert len(logs) > 5
        assert not [p for p in logs if token.encode() in p.read_bytes()]
    finally:
        messages.close()
    assert TOKEN not in os.environ
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
