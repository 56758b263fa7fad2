"""Problems of a few rows: waiting for a second thread would cost more than all of the work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sparsefleet.models.kernels import native


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["compiled", "torch"])
def twin(request, monkeypatch):
    """Each test with the compiled kernels and with their torch twins."""
    if request.param == "torch":
        monkeypatch.setattr(native, "usable", lambda *_: False)
    elif native.library() is None:
        pytest.skip("the kernels were not compiled")
