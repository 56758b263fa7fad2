"""The slow references, and a switch that turns the compiled kernels off."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from sparsefleet.models.kernels import native

_spec = importlib.util.spec_from_file_location("pursuit_reference", Path(__file__).parent / "reference.py")
_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_reference)


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """Pursuits as their definitions say."""
    return _reference


@pytest.fixture(params=["compiled", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of computing."""
    if request.param == "torch":
        monkeypatch.setattr(native, "usable", lambda *_: False)
    elif native.library() is None:
        pytest.skip("the kernels were not compiled (no C++ compiler at set-up)")
    return request.param
