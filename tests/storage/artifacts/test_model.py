"""Random sequences of operations against a plain dictionary."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sparsefleet.storage.artifacts import ArtifactStore
from sparsefleet.storage.errors import NotFound

from .before import as_before, tag_text

NAMES = st.sampled_from(["a", "a.v1", "A-b_c"])
ALIASES = st.sampled_from(["best", "staging"])


class StoreMachine(RuleBasedStateMachine):
    """The model: for each name its values in order, and where its aliases point."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = ArtifactStore(self.folder.name)
        self.versions: dict[str, list[int]] = {}
        self.aliases: dict[str, dict[str, int]] = {}

    def teardown(self) -> None:
        assert self.store.verify() == []
        assert ArtifactStore(self.folder.name, create=False).names() == sorted(self.versions)
        self.folder.cleanup()

    @rule(name=NAMES, value=st.integers(-5, 5))
    def publish(self, name: str, value: int) -> None:
        made = self.store.publish(name, arrays={"x": np.array(value)}, card={"seed": value})
        values = self.versions.setdefault(name, [])
        values.append(value)
        assert made.number == len(values)

    @rule(name=NAMES, alias=ALIASES, number=st.integers(1, 4))
    def set_alias(self, name: str, alias: str, number: int) -> None:
        if number <= len(self.versions.get(name, [])):
            self.store.set_alias(name, alias, number)
            self.aliases.setdefault(name, {})[alias] = number
        else:
            with pytest.raises(NotFound):
                self.store.set_alias(name, alias, number)

    @rule(name=NAMES, alias=ALIASES)
    def remove_alias(self, name: str, alias: str) -> None:
        if self.aliases.get(name, {}).pop(alias, None) is None:
            with pytest.raises(NotFound):
                self.store.remove_alias(name, alias)
        else:
            self.store.remove_alias(name, alias)

    @rule(name=NAMES, to=st.one_of(st.integers(1, 4), ALIASES))
    def rollback(self, name: str, to: int | str) -> None:
        values = self.versions.get(name, [])
        number = self.aliases.get(name, {}).get(to, 0) if isinstance(to, str) else to
        if 1 <= number <= len(values):
            self.store.rollback(name, to)
            values.append(values[number - 1])
        else:
            with pytest.raises(NotFound):
                self.store.rollback(name, to)

    @rule(reopen=st.booleans())
    def collect(self, reopen: bool) -> None:
        self.store.garbage_collect(older_than_days=0, dry_run=False)
        if reopen:
            self.store = ArtifactStore(self.folder.name)

    @rule(name=NAMES, number=st.integers(1, 4), other=NAMES)
    def spoil_a_shortcut(self, name: str, number: int, other: str) -> None:
        if number < len(self.versions.get(name, [])):
            path = Path(self.folder.name, "shortcuts", name, str(number))
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(tag_text(self.store.resolve(other if other in self.versions else name).snapshot))
            assert len(self.store.verify()) == 1
            assert self.store.resolve(f"{name}@{number}").number == number
            assert self.store.verify() == []

    @rule()
    def move_to_tags(self) -> None:
        as_before(self.folder.name)

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        assert self.store.names() == sorted(self.versions)
        for name, values in self.versions.items():
            aliases = {**self.aliases.get(name, {}), "latest": len(values)}
            assert self.store.aliases(name) == aliases
            assert [version.number for version in self.store.history(name)] == list(range(len(values), 0, -1))
            for ref, number in [*aliases.items(), *((at, at) for at in range(1, len(values) + 1))]:
                got: Any = self.store.load(f"{name}@{ref}")
                assert (got.version.number, int(got.arrays["x"])) == (number, values[number - 1])


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
