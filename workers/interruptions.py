"""Ctrl-C and SIGTERM at places of our choice.

Python lets them raise an exception between any two instructions. In the middle of a lock, a queue or an event loop that
breaks what others wait for, and an exception within a destructor is lost.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

Check = Callable[[], None]


@contextmanager
def held() -> Generator[Check, None, None]:
    """A function to call where an interruption does no harm: it lets one happen that has arrived meanwhile.

    What is still waiting at the end happens then; a second interruption does not wait. Does nothing in other threads
    than the main one, and with signals that no Python function answers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    arrived: list[tuple[int, FrameType | None]] = []
    answers = {int(n): a for n in (signal.SIGINT, signal.SIGTERM) if callable(a := signal.getsignal(n))}

    def hold(number: int, frame: FrameType | None) -> None:
        arrived.append((number, frame))
        if len(arrived) > 1:
            check()

    def check() -> None:
        if arrived:
            number, frame = arrived[-1]
            arrived.clear()
            answers[number](number, frame)

    for number in answers:
        signal.signal(number, hold)
    try:
        yield check
    finally:
        for number, answer in answers.items():
            signal.signal(number, answer)
        check()
