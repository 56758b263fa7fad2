"""Addresses: what is accepted, what they become, what is refused before anything is contacted."""

import os
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from sparsefleet.storage.errors import NotFound, StorageError
from sparsefleet.storage.locations import Location, locate, reaching, s3_settings


def test_local_addresses_become_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = os.getcwd()
    assert locate("a/../b").uri == f"{here}/b"
    assert locate(Path("b")) == locate(f"file://{here}/b") == Location(f"{here}/b")
    assert locate("file:///a%20b").uri == "/a b"
    assert locate("b").is_local
    assert locate("b").path == Path(here, "b")


def test_s3_addresses_lose_the_slash_at_the_end() -> None:
    place = locate("s3://bucket/some/prefix/")
    assert (place.uri, place.bucket, place.prefix) == ("s3://bucket/some/prefix", "bucket", "some/prefix")
    assert locate("S3://bucket") == locate("s3://bucket/")
    assert locate("s3://bucket").child("a/b").uri == "s3://bucket/a/b"
    assert locate("s3://bucket/x.zarr").name == "x.zarr"


@pytest.mark.parametrize(
    "uri",
    [
        *("", "a\0b", "file://host/x", "gs://bucket/x", "http://host/x", "s3://", "s3://B/x", "s3://a..b/x"),
        *("s3://bucket/../x", "s3://bucket/a//b", "s3://bucket/./x", "s3://bucket/a\nb", "s3://me:pass@bucket/x"),
        *("s3://me:pass/pass@bucket/x", "s3://me:pass/x"),
    ],
)
def test_other_addresses_are_refused(uri: str) -> None:
    with pytest.raises(StorageError) as caught:
        locate(uri)
    assert "me:" not in str(caught.value)
    assert "pass@" not in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text())
def test_an_address_is_stable_or_refused(text: str) -> None:
    try:
        place = locate(text)
    except StorageError:
        return
    assert locate(place.uri) == place
    assert pickle.loads(pickle.dumps(place)) == place  # noqa: S301 - our own value: workers receive it so


@given(st.text(max_size=30))
def test_a_child_stays_below_its_parent(name: str) -> None:
    for parent in (locate("/data/store"), locate("s3://bucket/store")):
        try:
            child = parent.child(name)
        except StorageError:
            continue
        assert os.path.normpath(child.uri.removeprefix("s3:/")).startswith(parent.uri.removeprefix("s3:/") + "/")


def test_the_two_kinds_do_not_pass_for_each_other() -> None:
    with pytest.raises(StorageError, match="not on this machine"):
        _ = locate("s3://bucket/x").path
    with pytest.raises(StorageError, match="is on this machine"):
        _ = locate("/x").bucket


def test_emptiness_of_a_folder(tmp_path: Path) -> None:
    place = locate(tmp_path / "new")
    assert place.is_empty()
    place.path.mkdir()
    assert place.is_empty()
    (place.path / "a").write_text("x")
    assert not place.is_empty()
    assert place.exists("a")
    assert not place.exists("b")
    with pytest.raises(StorageError, match="Not a directory"):
        place.child("a").is_empty()


def test_reaching_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing there"), reaching(locate(tmp_path)):
        (tmp_path / "missing").read_bytes()


def test_s3_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID"):
        s3_settings()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    with pytest.raises(StorageError, match="AWS_SECRET_ACCESS_KEY is not"):
        s3_settings()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert s3_settings().endpoint is None
    assert s3_settings().region == "us-east-1"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example.org")
    assert not s3_settings().allow_http
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    assert s3_settings().allow_http
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://user:password@host")
    with pytest.raises(StorageError, match="must start with") as caught:
        s3_settings()
    assert "password" not in str(caught.value)


def test_an_endpoint_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "loopback-access-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "loopback-secret-key")
    with pytest.raises(StorageError, match=f"{endpoint} does not answer") as caught:
        locate("s3://bucket/x").is_empty()
    assert "loopback-secret-key" not in str(caught.value)


def test_zarr_on_a_folder(tmp_path: Path) -> None:
    _write_and_read(locate(tmp_path / "x.zarr"))


@pytest.mark.e2e
def test_zarr_on_s3(s3_bucket: str) -> None:
    place = locate(s3_bucket).child("deep/x.zarr")
    assert place.is_empty()
    _write_and_read(place)
    assert not place.is_empty()
    assert locate(s3_bucket).child("deep/x").is_empty()  # a name that only starts alike is another place
    assert place.exists("a/zarr.json")
    assert not place.exists("b/zarr.json")
    with pytest.raises(NotFound, match="missing-bucket"):
        locate("s3://missing-bucket/x").is_empty()


def _write_and_read(place: Location) -> None:
    values = np.arange(6.0).reshape(2, 3)
    group = zarr.open_group(place.zarr_store(read_only=False), mode="a")
    group.create_array("a", data=values)
    again = zarr.open_group(place.zarr_store(read_only=True), mode="r")
    np.testing.assert_array_equal(np.asarray(again["a"]), values)
