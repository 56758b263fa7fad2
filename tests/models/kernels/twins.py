"""What the tests of a compiled kernel against its torch twin share."""

from copy import deepcopy
from dataclasses import fields, is_dataclass

import pytest
import torch
from sparsefleet.models import Batch, Stage
from sparsefleet.models.kernels import native

compiled = pytest.mark.skipif(
    native.library() is None, reason="the kernels were not compiled (no C++ compiler at set-up)"
)


def both(monkeypatch, call, *, rows=1):
    """What `call` gives with the kernel, which must have run where there are rows, and with torch."""
    ran: list[str] = []
    real = native.call
    with monkeypatch.context() as patch:
        patch.setattr(native, "call", lambda name, *more: (ran.append(name), real(name, *more))[1])
        fast = call()
        assert ran or not rows, "the compiled kernel did not run: torch would be compared with itself"
        patch.setattr(native, "library", lambda: None)
        ran.clear()
        slow = call()
        assert not ran
    return fast, slow


def on_threads(monkeypatch, kernel, call):
    """What the first `kernel.run` of `call` writes and returns, on 1 and on 3 threads: two lists of tensors."""
    real, calls = kernel.run, []

    def keep(self, *given, **more):
        calls.append((self, deepcopy((given, more))))
        return real(self, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "run", keep)
        call()
    held, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            given, more = deepcopy(calls[0][1])
            result = real(calls[0][0], *given, **more)
            found.append(tensors((result, given, more)))
    finally:
        torch.set_num_threads(held)
    return found


def tensors(found):
    """All tensors inside."""
    if isinstance(found, torch.Tensor):
        return [found]
    if is_dataclass(found):
        return tensors([getattr(found, f.name) for f in fields(found)])
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def surveyed(model, params, batch, stage):
    """The stage after the surveys that it needs."""
    for _ in range(model.surveys_at(stage)):
        stage = model.refine(params, model.survey(params, batch, stage), stage)
    return stage


def close(a, b, rtol):
    """Whether `a` is `b` up to a share of the largest entry."""
    return torch.allclose(a.double(), b.double(), rtol=rtol, atol=rtol * float(b.abs().max()) if b.numel() else 0)


def update_differs(problem, case, rows):
    """‖W - W'‖ / ‖W'‖ of one update in float32 and in float64."""
    found = []
    for dtype in ("float32", "float64"):
        model, params, y = problem(case, dtype, rows=rows)
        stage = Stage(step=0, steps=2, rows=rows)
        found.append(model.update(params, model.statistics(params, Batch(y), stage), stage)["W"])
    return float((found[0] - found[1]).norm() / found[1].norm())
