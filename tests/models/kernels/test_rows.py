"""The compiled kernels against their torch twins."""

import pytest
import torch
from sparsefleet.models.kernels import native, top_k

from .twins import compiled


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "width", "k"), [(0, 5, 2), (1, 1, 1), (7, 300, 8), (600, 33, 33), (300, 4096, 32)])
def test_top_k_is_the_stable_sort(rows: int, width: int, k: int, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(rows)
    # Few distinct values, so that there are ties.
    for u in (torch.randn(rows, width, generator=rng, dtype=dtype), torch.randint(-3, 4, (rows, width)).to(dtype)):
        values, indices = top_k(u, k)
        wanted, at = u.sort(dim=1, descending=True, stable=True)
        assert torch.equal(values, wanted[:, :k])
        assert torch.equal(indices, at[:, :k])


@pytest.mark.parametrize("numbers", [0, 4, 1023])
def test_a_row_with_nan_gives_indices_that_exist(numbers: int) -> None:
    u = torch.full((3, 1024), float("nan"))
    u[:, torch.randperm(1024, generator=torch.Generator().manual_seed(0))[:numbers]] = 1.0
    _, indices = top_k(u, 32)
    assert bool(((indices >= 0) & (indices < 1024)).all())


def test_without_compiled_kernels_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    u = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    fast = top_k(u, 5)
    monkeypatch.setattr(native, "usable", lambda *_: False)
    slow = top_k(u, 5)
    assert torch.equal(fast[0], slow[0]) and torch.equal(fast[1], slow[1])
