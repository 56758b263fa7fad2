"""The model of many workers on paper: its limits are those that one knows, and a simulation step by step agrees."""

import pytest
from sparsefleet.workers.scale import CLUSTER, WAYS, Network, Work, most_rows, ring, seconds, slowest, weak_efficiency

EQUAL = Network(latency=1e-4, bytes_per_second=1e9, spread=0.0)
WORK = Work(rows=10_000, block_rows=1000, seconds_per_row=1e-5, serial_seconds=0.01, statistics_bytes=1_000_000)


@pytest.mark.parametrize("way", WAYS)
def test_one_worker_sends_nothing_and_more_bytes_take_longer(way):
    assert WAYS[way](1, 10**6, EQUAL) == 0
    assert WAYS[way](8, 2 * 10**6, EQUAL) > WAYS[way](8, 10**6, EQUAL) > 0


def test_ring_is_the_sum_of_its_steps():
    # Every step, each worker receives a P-th of the message from its neighbour: P-1 steps to add, P-1 to hand round.
    for workers in (2, 5, 16):
        clock = [0.0] * workers
        for _ in range(2 * (workers - 1)):
            send = 1e-4 + 1e6 / workers / 1e9
            clock = [max(clock[i], clock[i - 1]) + send for i in range(workers)]
        assert ring(workers, 10**6, EQUAL) == pytest.approx(max(clock))


def test_a_ring_moves_least_where_messages_are_large_and_a_tree_wins_where_they_are_small():
    large, small = ({w: f(1000, b, CLUSTER) for w, f in WAYS.items()} for b in (10**10, 100))
    assert min(large["ring"], large["halving"]) < large["tree"] < large["gather"]
    assert max(small["tree"], small["halving"]) < small["ring"]


def test_there_are_no_more_busy_workers_than_blocks():
    assert [most_rows(WORK, p) for p in (1, 2, 3, 10, 50)] == [10_000, 5000, 4000, 1000, 1000]
    assert seconds(WORK, 50, EQUAL) > seconds(WORK, 10, EQUAL)


def test_the_last_block_may_be_short():
    assert most_rows(Work(1500, 1000, 1e-5, 0.0, 8), 1) == 1500


def test_workers_wait_for_the_slowest():
    assert slowest(1, CLUSTER) == 1
    assert slowest(1000, CLUSTER) > slowest(10, CLUSTER) > 1


def test_what_every_worker_does_alone_is_not_shared():
    assert seconds(WORK, 1, EQUAL) == pytest.approx(0.11)
    assert 0 < weak_efficiency(WORK, 1000, 1000, EQUAL) < weak_efficiency(WORK, 100_000, 1000, EQUAL) < 1
