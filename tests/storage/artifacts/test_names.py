"""What may be called how."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparsefleet.storage.artifacts import check_name, parse_ref
from sparsefleet.storage.artifacts.names import NAME, check_alias, check_figure, check_keys, check_run
from sparsefleet.storage.errors import StorageError


@pytest.mark.parametrize("name", ["a", "natural-images.gsc_2", "A9", "0", "x" * 128, "a-", "a_"])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".a", "a.", "-a", "_a", "a/b", "a b", "ä", "a@1", "x" * 129, "a\n", "..", "a\0"])
def test_names_refused(name: str) -> None:
    with pytest.raises(StorageError, match="cannot be a name") as caught:
        check_name(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(StorageError, match="cannot be a run"):
        check_run(name)


@pytest.mark.parametrize(
    ("alias", "why"),
    [("latest", "moves by itself"), ("v3", "looks like a version"), ("3", "looks like a version")]
    + [(alias, "cannot be an alias") for alias in ("", "a.b", "-a", "a b", "best\n", "é", "a" * 65, "_a")],
)
def test_aliases_refused(alias: str, why: str) -> None:
    with pytest.raises(StorageError, match=why):
        check_alias(alias)


@given(st.from_regex(NAME, fullmatch=True), st.integers(1, 10**6), st.sampled_from(["best", "Staging-2", "vv"]))
def test_references(name: str, number: int, alias: str) -> None:
    assert parse_ref(f"{name}@{number}") == parse_ref(f"{name}@v{number}") == (name, number)
    assert parse_ref(f"{name}@{alias}") == (name, alias)
    assert parse_ref(name) == parse_ref(f"{name}@latest") == (name, "latest")


@pytest.mark.parametrize("ref", ["a@", "a@0", "a@01", "a@-1", "a@b@c", "a@1.5", "@1", "a@b.c"])
def test_references_refused(ref: str) -> None:
    with pytest.raises(StorageError):
        parse_ref(ref)


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", ".", "a/../b", "__x", "ä", "a b", "zarr.json/\n"])
def test_keys_refused(key: str) -> None:
    with pytest.raises(StorageError, match="cannot be the name"):
        check_keys([key], "an array")


def test_a_key_cannot_be_the_folder_of_another() -> None:
    check_keys(["a/b", "a/c/d", "ab"], "an array")
    with pytest.raises(StorageError, match="also the folder"):
        check_keys(["a/b/c", "a/b"], "an array")


@pytest.mark.parametrize("name", ["a.jpg", "../a.png", "a/b.png", ".png", "card.json"])
def test_figures_refused(name: str) -> None:
    with pytest.raises(StorageError, match="cannot be a figure"):
        check_figure(name)
