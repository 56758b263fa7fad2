"""One compute thread per test process: two threads on one small problem mostly wait for each other."""

import sparsefleet  # noqa: F401, I001 - sets how OpenMP threads wait, before torch starts them
import torch

torch.set_num_threads(1)
