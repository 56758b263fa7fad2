"""The slow references."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

_spec = importlib.util.spec_from_file_location("pursuit_reference", Path(__file__).parent / "reference.py")
_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_reference)


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """Pursuits as their definitions say."""
    return _reference
