"""The smallest model there is, as a user would write it: tests copy this file into a folder of their own.

Where a file `deadly` lies beside it, the first worker that loads it removes that and is killed.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from sparsefleet.models import Codes, Model, ModelError, Schedule, Stats

try:
    if sys.argv[0] != "-c":  # in a worker, not in the command
        Path(__file__).with_name("deadly").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
except FileNotFoundError:
    pass


@dataclass(frozen=True, slots=True)
class Sums(Stats):
    total: torch.Tensor
    rows: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Mean(Model):
    """Atoms drift to the mean."""

    pause: float = 0.0
    """Seconds that a batch takes."""
    fail_at: int = -1
    """Update at which it refuses to go on."""

    def schedule(self):
        return Schedule(passes=30, update_every="pass", batch_rows=256)

    def init(self, probe, generator):
        return {"W": torch.randn(probe.dim, self.atoms, generator=generator, dtype=torch.float64)}

    def statistics(self, params, batch, stage):
        if stage.step == self.fail_at:
            raise ModelError(f"fail_at={self.fail_at}: told to fail")
        time.sleep(self.pause)
        return Sums(batch.x.double().sum(0), torch.tensor([float(len(batch.x))], dtype=torch.float64))

    def update(self, params, stats, stage):
        return {"W": 0.9 * params["W"] + 0.1 * (stats.total / stats.rows)[:, None]}

    def encode(self, params, batch):
        return Codes(torch.zeros(len(batch.x), 1, dtype=torch.int32), batch.x[:, :1])

    def metrics(self, params, stats):
        return {"rows": float(stats.rows)}

    def dictionary(self, params):
        return params["W"]

    def memory(self, rows, dim):
        return 8 * rows * dim
