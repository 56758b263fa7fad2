"""What the field calls the models' metrics, and the order in which they are shown."""

from __future__ import annotations

from collections.abc import Iterable

LABELS = {
    "free_energy": "free energy per datapoint [nats]",
    "log_likelihood": "log-likelihood per row [nats]",
    "training_log_likelihood": "log-likelihood per row that was learned on [nats]",
    "psnr": "PSNR [dB]",
    "psnr_before": "PSNR before [dB]",
    "loss": "loss",
    "explained_variance": "explained variance",
    "sigma": "noise σ",
    "pi": "prior π",
    "active_atoms": "active atoms per datapoint",
    "l0": "active atoms per datapoint (L0)",
    "relative_error": "relative error ‖x - Dᵀa‖ / ‖x‖",
    "gap": "Frank-Wolfe gap",
    "replaced": "atoms replaced by the last update",
    "dead_share": "share of dead atoms",
    "used_share": "share of datapoints used",
}


def ordered(names: Iterable[str]) -> list[str]:
    """The names as they are best read: known ones first, then the others as they come, wall seconds last."""
    known = list(LABELS)
    return sorted(names, key=lambda n: (n == "seconds", known.index(n) if n in LABELS else len(known)))
