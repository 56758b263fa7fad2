"""An interruption waits for a place where it does no harm; a second one does not."""

import signal
import threading

import pytest
from sparsefleet.workers.interruptions import held


def test_an_interruption_waits_for_the_check() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), held() as check:  # noqa: PT012 - the order is what is tested
        check()
        signal.raise_signal(signal.SIGINT)
        done.append("undisturbed")
        check()
        done.append("never")
    assert done == ["undisturbed"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_that_nobody_asked_for_happens_at_the_end() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), held():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        done.append("all")
    assert done == ["all"]


def test_a_second_one_does_not_wait() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), held():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        done.append("first")
        signal.raise_signal(signal.SIGINT)
        done.append("second")
    assert done == ["first"]


def test_other_threads_are_left_alone() -> None:
    found = []

    def work() -> None:
        before = signal.getsignal(signal.SIGINT)
        with held() as check:
            check()
            found.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]
