"""The same store on S3: races, servers that break their promises, servers that are not there."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from urllib.request import Request, urlopen
from wsgiref.types import StartResponse, WSGIEnvironment

import boto3
import numpy as np
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from sparsefleet.storage.artifacts import ArtifactStore, runs
from sparsefleet.storage.artifacts import store as stores
from sparsefleet.storage.errors import NotFound, StorageError, StoreConflict, Unreachable
from werkzeug.serving import make_server

pytestmark = pytest.mark.e2e

W = {"W": np.eye(3)}


def test_publish_resolve_alias_run_and_verify(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/team/store"
    with pytest.raises(NotFound):
        ArtifactStore(uri, create=False)
    store = ArtifactStore(uri)
    store.publish("a", arrays=W, card={"seed": 1}, history={"F": [1.0, 2.0]})
    store.publish("a", arrays={"W": np.ones(2)}, card={})
    store.set_alias("a", "best", 1)
    again = ArtifactStore(uri, create=False)
    got = again.load("a@best")
    assert (got.version.number, got.card["seed"]) == (1, 1)
    np.testing.assert_array_equal(got.arrays["W"], np.eye(3))
    run = again.run("r")
    run.commit(1, W, {"F": [0.5]}, {"model": "bsc"})
    run.commit(2, W, {"F": [0.5, 0.7]}, {"model": "bsc"})
    assert [info.step for info in store.runs()] == [2]
    run.drop()
    assert store.runs() == []
    assert store.verify() == []
    assert store.garbage_collect(older_than_days=1)["bytes"] == 0
    with pytest.raises(StorageError, match="writers at work"):
        store.garbage_collect(older_than_days=0)
    facts = store.doctor()
    assert (facts["kind"], facts["conditional_create"], facts["conditional_update"]) == ("s3", True, True)


def test_rubbish_is_dated_by_the_clock_of_the_server(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock is a year ahead must not take what others are writing for old."""
    store = ArtifactStore(f"{s3_bucket}/store")
    store.publish("a", arrays=W, card={})

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(days=365)

    monkeypatch.setattr(stores, "datetime", Ahead)
    before = datetime.fromisoformat(store.garbage_collect(older_than_days=1)["before"])
    assert before < datetime.now(UTC)


def test_racing_publishers_lose_nothing(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/store"
    gate = threading.Barrier(4)

    def publish(who: int) -> list[int]:
        gate.wait()
        store = ArtifactStore(uri)  # they also race for making it
        return [store.publish("a", arrays={"x": np.array(who)}, card={"seed": who}).number for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        numbers = [number for part in pool.map(publish, range(4)) for number in part]
    assert sorted(numbers) == list(range(1, 13))
    store = ArtifactStore(uri, create=False)
    assert sorted(store.card(v.ref)["seed"] for v in store.history("a")) == sorted([0, 1, 2, 3] * 3)
    assert store.verify() == []


def test_two_processes_on_one_run_are_told(s3_bucket: str) -> None:
    store = ArtifactStore(f"{s3_bucket}/store")
    one, two = store.run("r"), store.run("r")
    one.commit(1, W)
    with pytest.raises(StoreConflict, match="run r"):
        two.commit(1, W)


def test_a_missing_bucket_and_wrong_places_are_named(s3_bucket: str) -> None:
    with pytest.raises(NotFound, match="NoSuchBucket"):
        ArtifactStore("s3://no-such-bucket-here/store")
    boto3.client("s3", region_name="us-east-1").put_object(
        Bucket=s3_bucket.removeprefix("s3://"), Key="notes/thesis.tex", Body=b"x"
    )
    with pytest.raises(StorageError, match="not an artifact store"):
        ArtifactStore(f"{s3_bucket}/notes")


@contextmanager
def revoked(endpoint: str) -> Iterator[None]:
    """The S3 server knows no access key any more."""

    def asks_from(requests: str) -> None:
        address, kind = f"{endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        with urlopen(Request(address, data=requests.encode(), method="POST", headers=kind)):
            pass

    asks_from("0")
    try:
        yield
    finally:
        asks_from("inf")


def test_revoked_credentials_are_not_waited_for(s3_bucket: str, s3_endpoint: str) -> None:
    store = ArtifactStore(f"{s3_bucket}/store")
    run = store.run("r")
    run.commit(1, W)
    attempts = (
        lambda: run.commit(2, W),
        lambda: store.publish("a", arrays=W, card={}),
        store.runs,
        lambda: ArtifactStore(f"{s3_bucket}/store"),
    )
    with revoked(s3_endpoint):
        for attempt in attempts:
            with pytest.raises(StorageError, match=r"refuses the credentials \(InvalidAccessKeyId\)") as caught:
                attempt()
            assert not isinstance(caught.value, Unreachable)
            assert "loopback-" not in str(caught.value)
    run = store.run("r")
    latest = run.latest()
    assert latest is not None and latest.step == 1
    run.commit(2, W)


@contextmanager
def served(change: Callable[[Any, WSGIEnvironment, StartResponse], Any]) -> Iterator[str]:
    """Another address of the S3 server's buckets, where `change(app, environ, start_response)` answers."""
    app: Any = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, lambda environ, start: change(app, environ, start), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_server_without_conditional_writes_is_refused(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_conditions(app: Any, environ: WSGIEnvironment, start: StartResponse) -> Any:
        environ.pop("HTTP_IF_MATCH", None)
        environ.pop("HTTP_IF_NONE_MATCH", None)
        return app(environ, start)

    uri = f"{s3_bucket}/store"
    with served(without_conditions) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StorageError, match="ignores conditional writes"):
            ArtifactStore(uri)
        monkeypatch.setenv("SPARSEFLEET_SINGLE_WRITER", "1")
        ArtifactStore(uri).publish("a", arrays=W, card={})
        monkeypatch.delenv("SPARSEFLEET_SINGLE_WRITER")
        reader = ArtifactStore(uri)
        assert reader.load("a").version.number == 1
        assert reader.doctor()["several_writers"] is False
        with pytest.raises(StorageError, match="SPARSEFLEET_SINGLE_WRITER=1"):
            reader.publish("a", arrays=W, card={})


def test_answers_that_get_lost_make_no_second_version(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[str] = []

    def forgetful(app: Any, environ: WSGIEnvironment, start: StartResponse) -> Any:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "PUT" or "/refs/branch." not in path or lost.count(path) >= 1:
            return app(environ, start)
        lost.append(path)  # it is done, but the client hears of an error
        b"".join(app(environ, lambda *_: None))
        start("500 Internal Server Error", [("Content-Length", "0")])
        return [b""]

    uri = f"{s3_bucket}/store"
    ArtifactStore(uri)
    with served(forgetful) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        store = ArtifactStore(uri)
        assert store.publish("a", arrays=W, card={}).number == 1
        assert store.publish("a", arrays=W, card={}).number == 2
        run = store.run("r")
        monkeypatch.setattr(runs, "CHAIN", 2)
        for step in range(3):
            lost.clear()
            run.commit(step, W, {"F": [0.0]}, {})
        assert [version.number for version in store.history("a")] == [2, 1]
        assert store.verify() == []
