"""One compute thread per test process: two threads on one small problem mostly wait for each other."""

import sparsefleet  # noqa: F401, I001 - sets how OpenMP threads wait, before torch starts them
import torch
from hypothesis import settings

torch.set_num_threads(1)
# How long an example takes says nothing about whether it is right: the machine may be busy.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
