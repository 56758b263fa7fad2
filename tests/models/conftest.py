"""What the tests of several kinds of models share."""

import pytest
from sparsefleet.models.kernels import native


@pytest.fixture(params=["compiled", "torch"])
def twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test with the compiled kernels and with their torch twins."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("the kernels were not compiled (no C++ compiler at set-up)")
