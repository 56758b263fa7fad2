"""Short texts that people write or download: read up to a size, and YAML without what can make a little text a lot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

LARGEST = 2**20
"""Bytes of a job, a recipe or a configuration. Real ones have thousands."""


class TooLarge(ValueError):
    """A file that is no short text."""


def read_short(path: str | Path) -> bytes:
    """The content of a file of at most `LARGEST` bytes.

    Raises:
        OSError: it cannot be read.
        TooLarge: it has more.
    """
    with open(path, "rb") as file:
        found = file.read(LARGEST + 1)
    if len(found) > LARGEST:
        raise TooLarge(f"it has more than {LARGEST:,} bytes")
    return found


def read_yaml(path: str | Path) -> Any:
    """What a short YAML file holds.

    Raises:
        OSError, ValueError: it cannot be read, is too large, or is not UTF-8.
        yaml.YAMLError: it is not YAML, or has aliases.
    """
    return load_yaml(read_short(path).decode("utf-8"))


def load_yaml(text: str) -> Any:
    """Plain values. yaml.YAMLError where `text` is not YAML, has aliases, or nests too deeply."""
    try:
        return yaml.load(text, _Plain)
    except RecursionError as err:
        raise yaml.YAMLError("it nests too deeply") from err
    except ValueError as err:  # a date that does not exist
        raise yaml.YAMLError(str(err)) from err


class _Plain(yaml.SafeLoader):
    """Without aliases (`*name`): a few lines of them stand for more values than any memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, "aliases (*name) are not read here; write the value", mark)
        return super().compose_node(parent, index)
