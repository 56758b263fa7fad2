"""Orthogonal matching pursuit, compiled, for CPUs. Its torch twin is `models.pursuit.batched.pursue`."""

from __future__ import annotations

from torch import Tensor

from . import native


def omp_rows(
    b: Tensor,
    gram: Tensor,
    energy: Tensor,
    allowed: Tensor,
    steps: int,
    *,
    silence: float,
    margin: float,
    least: float,
    ols: bool,
    out: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Pursue every row on its own; only where `native.usable`.

    Args:
        b: [n, H] x·D for unit (or zero) atoms; overwritten.
        gram: [H, H].
        energy: [n] ‖x‖².
        allowed: [n] squared error at which to stop, negative for never.
        steps: k <= H.
        silence: correlation, relative to ‖x‖, below which nothing is left.
        margin: how far below `allowed` to stop, relative to ‖x‖².
        least: what an atom must lower ‖r‖² by to join.
        ols: choose by the error that remains.
        out: where the results go: indices [n, k] int32, values [n, k], status [n] uint8, error [n].
    """
    native.call(
        "omp",
        *(b, b.shape[0], b.shape[1], steps, gram.contiguous(), energy.contiguous(), allowed.contiguous()),
        *(silence, margin, least, int(ols), *out),
    )
