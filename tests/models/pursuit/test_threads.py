"""Blocks of work on threads."""

import multiprocessing

import pytest
import torch
from sparsefleet.models.kernels.threads import on_threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def square(n):
    return n * n


def in_a_child():
    assert on_threads(square, range(5)) == [0, 1, 4, 9, 16]


def test_results_come_in_order_and_errors_come_out(two_threads):
    assert on_threads(square, range(5)) == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError):
        on_threads(lambda n: 1 / n, range(3))


def test_a_forked_process_has_threads_of_its_own(two_threads):
    on_threads(square, range(5))
    child = multiprocessing.get_context("fork").Process(target=in_a_child)
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
        child.join()
    assert child.exitcode == 0
