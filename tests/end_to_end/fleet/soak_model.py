"""A model for the soak: slow while a file `slow` lies beside it, so that a job lasts as long as it is disturbed."""

import time
from pathlib import Path

from own_mean import Mean as Fast

SECONDS = 0.2


class Mean(Fast):
    """Atoms drift to the mean."""

    def statistics(self, params, batch, stage):
        if Path(__file__).with_name("slow").exists():
            time.sleep(SECONDS)
        return super().statistics(params, batch, stage)
