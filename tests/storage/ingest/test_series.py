"""Windows of series: which readings they hold, what is held out, and everything that is no table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.storage import BadData, NotFound, StorageError, StoreConflict
from sparsefleet.storage.ingest import SeriesSource, ingest
from sparsefleet.storage.ingest.series import HELD_OUT, MARKS


def save(path: Path, readings: np.ndarray, marked: tuple[int, ...] = (), *, skip: tuple[int, ...] = ()) -> str:
    """Readings [steps, sensors, 2] as a table, the sensors one after the other, their lines mixed."""
    lines = [
        f"{t},{s},{readings[t, s, 0]},{readings[t, s, 1]},{int(t in marked and s == 0)}"
        for s in range(readings.shape[1])
        for t in range(len(readings))
        if not (t in skip and s == 1)
    ]
    mixed = [lines[i] for i in np.random.default_rng(0).permutation(len(lines))]
    path.write_text("step,sensor,wet,warm,event\n" + "\n".join(mixed) + "\n")
    return str(path)


def job(tmp_path: Path, source: str, **more: Any) -> SeriesSource:
    fixed: dict[str, Any] = {"sources": [source], "out": str(tmp_path / "w.zarr"), "columns": ["wet", "warm"]}
    return SeriesSource(**(fixed | {"key": "sensor", "clock": "step", "window": 3, "dc": False, "scale": False} | more))


@pytest.fixture
def readings() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(20, 2, 2)).round(3)


def windows(readings: np.ndarray, at: list[int]) -> np.ndarray:
    """Channel after channel: wet of all sensors, then warm of all."""
    return np.array([readings[t : t + 3].transpose(2, 1, 0).reshape(-1) for t in at])


def test_channels_stand_side_by_side(tmp_path, readings):
    found = ingest(job(tmp_path, save(tmp_path / "a.csv", readings), hop=2))
    names = found.attributes["channels"]
    # Sensors come in the order of their first line.
    order = [int(n.split()[1]) for n in names[:2]]
    assert [n.split()[0] for n in names] == ["wet", "wet", "warm", "warm"]
    wanted = windows(readings[:, order], list(range(0, 18, 2)))
    np.testing.assert_allclose(found.read(0, found.rows), wanted, atol=1e-6)


def test_marked_windows_are_not_learned_from_and_late_ones_are_held_out(tmp_path, readings):
    source = save(tmp_path / "a.csv", readings, marked=(4, 15))
    found = ingest(job(tmp_path, source, label="event", learn=0.5))
    assert found.rows == 10 - 3
    held_out, marks = found.side(HELD_OUT), found.side(MARKS)
    assert held_out is not None and marks is not None and held_out.shape == (8, 12)
    assert marks.tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    whole = ingest(job(tmp_path, source, out=str(tmp_path / "all.zarr")))
    assert whole.rows == 18 and whole.side(MARKS) is None


def test_mean_and_scale_go(tmp_path, readings):
    readings[:, 0, 0] = readings[:, 0, 0] * 50 + 1000
    readings[:, 1, 1] = 7
    found = ingest(job(tmp_path, save(tmp_path / "a.csv", readings), dc=True, scale=True))
    rows = found.read(0, found.rows).reshape(-1, 4, 3)
    np.testing.assert_allclose(rows.mean(2), 0, atol=1e-5)
    spread = rows.std(axis=(0, 2))
    # A channel that never changes stays zero.
    assert sorted(spread.round(4).tolist()) == [0, 1, 1, 1]


def test_windows_do_not_cross_gaps(tmp_path, readings):
    found = ingest(job(tmp_path, save(tmp_path / "a.csv", readings, skip=(9,))))
    assert found.rows == (9 - 2) + (10 - 2)


def test_a_single_series_in_the_order_of_its_lines(tmp_path):
    (tmp_path / "a.csv").write_text("x\n1\n2\n4\n8\n")
    found = ingest(job(tmp_path, str(tmp_path / "a.csv"), columns=["x"], key=None, clock=None))
    np.testing.assert_array_equal(found.read(0, 2), [[1, 2, 4], [2, 4, 8]])


def test_an_unfinished_one_is_begun_again_and_a_finished_one_kept(tmp_path, readings):
    asked = job(tmp_path, save(tmp_path / "a.csv", readings))
    ingest(asked)
    with pytest.raises(StoreConflict):
        ingest(asked)
    assert ingest(asked.model_copy(update={"overwrite": True})).rows == 18


BAD = {
    "no such column": ("a,b\n1,2\n", {}, "no column 'wet'"),
    "no number": ("wet,warm\n1,2\n1,x\n3,4\n", {"key": None, "clock": None}, "'x' in reading 2"),
    "an empty cell": ("wet,warm\n1\n", {"key": None, "clock": None}, "'warm' holds ''"),
    "NaN": ("wet,warm\n1,nan\n", {"key": None, "clock": None}, "'nan' in reading 1"),
    "no readings": ("wet,warm,sensor,step\n", {}, "has no readings"),
    "nothing": ("", {}, "it has none"),
    "twice": ("wet,warm,sensor,step\n1,2,1,1\n1,2,1,1\n", {}, "step 1 of sensor 1 occurs more than once"),
    "too short": ("wet,warm,sensor,step\n1,2,1,1\n1,2,1,2\n", {}, "2 steps in common"),
    "all marked": ("wet,warm\n1,1\n1,1\n1,1\n", {"key": None, "clock": None, "label": "warm"}, "1 of them marked"),
    "binary": ("\x00\xff", {}, "."),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_table_is_refused(tmp_path, name):
    text, more, words = BAD[name]
    (tmp_path / "a.csv").write_text(text, encoding="latin-1")
    with pytest.raises(BadData, match=words):
        ingest(job(tmp_path, str(tmp_path / "a.csv"), **more))
    assert not (tmp_path / "w.zarr").exists()


def test_no_such_file(tmp_path):
    with pytest.raises(NotFound):
        ingest(job(tmp_path, str(tmp_path / "none.csv")))


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.sampled_from('wet,arm\n10."x;'), max_size=60))
def test_any_text_is_a_table_or_refused(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.csv").write_text("wet,warm\n" + text)
    asked = job(folder, str(folder / "a.csv"), key=None, clock=None, window=2)
    said = ""
    try:
        said = str(ingest(asked).rows)
    except StorageError as err:
        said = str(err)
    assert said and "\n" not in said
