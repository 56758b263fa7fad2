"""The feed hands out every row once per pass, the same rows whatever the number of workers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sparsefleet.models import Schedule, make_model
from sparsefleet.storage import Dataset, create_dataset, open_dataset
from sparsefleet.workers.communicator import Solo
from sparsefleet.workers.errors import JobError
from sparsefleet.workers.feed import Feed, read_ahead


class Seat(Solo):
    """A place in a group whose members never need to speak."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def feed(uri, *, every="batch", batch=300, passes=2, rank=0, size=1, rows=None, budget=10**9, seed=5):
    data = open_dataset(uri)
    schedule = Schedule(passes=passes, update_every=every, batch_rows=batch)
    model = make_model("bsc", {"atoms": 4, "dtype": "float64"})
    return Feed(
        data,
        model,
        schedule,
        Seat(rank, size),
        rows=rows or data.rows,
        seed=seed,
        budget=budget,
        device=torch.device("cpu"),
    )


def rows_of(updates):
    return [torch.cat([b.x for b in u.batches()]) for u in updates]


@pytest.mark.parametrize("every", ["pass", "batch"])
@pytest.mark.parametrize("budget", [0, 40_000, 10**9])
def test_every_row_once_per_pass(make_data, every, budget):
    uri = make_data()
    data = open_dataset(uri)
    seen = torch.cat(rows_of(feed(uri, every=every, passes=1, budget=budget).run(0)))
    expected = data.read(0, data.rows)
    assert np.array_equal(np.unique(seen.numpy(), axis=0), np.unique(expected.astype(np.float64), axis=0))
    assert len(seen) == data.rows


@pytest.fixture
def small(make_data):
    return make_data(700, 3)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(1, 7),
    batch=st.integers(1, 900),
    rows=st.integers(1, 700),
    every=st.sampled_from(["pass", "batch"]),
)
def test_workers_share_the_same_batches(small, size, batch, rows, every):
    uri = small
    alone = rows_of(feed(uri, every=every, batch=batch, rows=rows).run(0))
    groups = [rows_of(feed(uri, every=every, batch=batch, rows=rows, rank=r, size=size).run(0)) for r in range(size)]
    assert [len(g) for g in groups] == [len(alone)] * size
    for i, whole in enumerate(alone):
        assert torch.equal(torch.cat([g[i] for g in groups]), whole)


@pytest.mark.parametrize("every", ["pass", "batch"])
def test_a_later_start_gives_the_later_updates(make_data, every):
    uri = make_data()
    whole = rows_of(feed(uri, every=every, passes=3).run(0))
    for start in (1, len(whole) // 2, len(whole) - 1):
        assert all(map(torch.equal, whole[start:], rows_of(feed(uri, every=every, passes=3).run(start))))


def test_batches_keep_their_memo_for_one_update(make_data):
    first, second = feed(make_data(), every="pass").run(0)
    next(iter(first.batches())).memo["x"] = torch.ones(1)
    assert "x" in next(iter(first.batches())).memo
    assert "x" not in next(iter(second.batches())).memo


def test_epochs_differ_and_seeds_differ(make_data):
    uri = make_data()
    one = rows_of(feed(uri, passes=2).run(0))
    assert not torch.equal(one[0], one[len(one) // 2])
    assert not torch.equal(one[0], rows_of(feed(uri, passes=2, seed=6).run(0))[0])


def test_shuffled_batches_are_read_in_whole_chunks_each_once_a_pass(make_data, monkeypatch):
    """Rows picked one by one out of a shuffled index drag their chunks along, again and again."""
    uri = make_data(2000, chunk_rows=64)
    data, real, asked = open_dataset(uri), Dataset.read, []

    def read(self, start, stop, name="data"):
        asked.append((start, stop))
        return real(self, start, stop, name)

    monkeypatch.setattr(Dataset, "read", read)
    batches = rows_of(feed(uri, batch=100, passes=2, budget=0).run(0))
    monkeypatch.undo()
    chunks = [(start, min(start + 64, 2000)) for start in range(0, 2000, 64)]
    first, second = asked[: len(chunks)], asked[len(chunks) :]
    assert sorted(first) == sorted(second) == chunks and chunks != first != second
    # And yet rows of a batch come from all over.
    numbers = {row.tobytes(): i for i, row in enumerate(data.read(0, 2000).astype(np.float64))}
    for batch in batches:
        places = np.array([numbers[row.tobytes()] for row in batch.numpy()])
        assert len(np.unique(places // 64)) >= 10 and (np.diff(places) != 1).mean() > 0.9


def test_nan_rows_are_named(tmp_path):
    values = np.ones((100, 2), dtype=np.float32)
    writer = create_dataset(
        str(tmp_path / "d.zarr"),
        rows=100,
        arrays={"data": ((2,), "float32")},
        shard_rows=50,
        chunk_rows=10,
        attributes={"kind": "dense"},
    )
    for shard in writer.shards():
        writer.write(shard, data=values[shard.slice])
    data = writer.finish()
    bad = feed(str(tmp_path / "d.zarr"), every="pass")
    read = data.read
    bad._data = type(
        "Data",
        (),
        {
            "read": lambda _, a, b, name: np.where(np.arange(a, b)[:, None] == 77, np.nan, read(a, b)),
            "uri": "d",
            "dim": 2,
        },
    )()
    with pytest.raises(JobError, match=r"first in rows \[77\]"):
        rows_of(bad.run(0))


def test_the_probe_sees_every_row_of_a_small_data_set_once(make_data):
    uri = make_data(1500)
    probe = feed(uri, every="pass").probe()
    whole = open_dataset(uri).read(0, 1500).astype(np.float64)
    assert probe.rows == 1500
    np.testing.assert_allclose(probe.mean.numpy(), whole.mean(0), atol=1e-12)
    np.testing.assert_allclose(probe.variance.numpy(), whole.var(0), atol=1e-12)


def test_read_ahead_hands_on_exceptions_and_ends_its_thread():
    def source():
        yield 1
        raise KeyError("x")

    ahead = read_ahead(source())
    assert next(ahead) == 1
    with pytest.raises(KeyError):
        next(ahead)
    endless = read_ahead(iter(int, 1))
    assert next(endless) == 0
    endless.close()


def test_the_last_stage_is_the_end_of_every_ramp():
    schedule = replace(Schedule(passes=5, update_every="pass", batch_rows=1), ramps={"T": ((0.0, 5.0), (0.8, 1.0))})
    values = [schedule.at(i, 5, seed=0, rows=1).get("T", 0) for i in range(5)]
    assert values[0] == 5 and values[-1] == 1 and values == sorted(values, reverse=True)
