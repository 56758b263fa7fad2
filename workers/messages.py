"""What an MPI rank says to the engine that had it launched: lines that stay whole, whoever else says something."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

CHANNEL = "SPARSEFLEET_MESSAGES"
"""The number of the inherited file that all ranks of one machine write to; without it they write to standard output."""


class Messages:
    """Writes lines, each in one piece."""

    def __init__(self, lock: str | Path) -> None:
        """`lock`: a file that all ranks see. Only with a channel of their own do they wait for one another there."""
        channel = os.environ.get(CHANNEL)
        self._file = int(channel) if channel else 1
        self._lock = os.open(lock, os.O_RDONLY) if channel else None

    def write(self, text: str) -> int:
        """Whole lines, each with its end."""
        left = memoryview(text.encode())
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        finally:
            if self._lock is not None:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""
