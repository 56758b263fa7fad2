"""sparsefleet: dictionaries learned by adding up statistics over shards.

The public Python API, imported on first use so that `import sparsefleet` costs nothing:

>>> import sparsefleet
>>> sparsefleet.open_dataset  # doctest: +SKIP
"""

import os
from importlib import import_module

__version__ = "0.1.0"

# Read when torch loads its OpenMP runtime. Threads that spin at the end of every parallel region cost nothing on an
# idle machine and a factor of ten where another process wants the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Read at torch's first allocation: large tensors lie in huge pages where the system offers them. Every update makes new
# parameters, and zeroing their pages one by one took a tenth of a step.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_PUBLIC = {
    "Model": "models",
    "open_dataset": "storage",
    "ArtifactStore": "storage",
    "LearnJob": "workers",
    "EncodeJob": "workers",
    "HarvestJob": "workers",
    "harvest": "pipelines",
    "learn": "pipelines",
    "encode": "pipelines",
    "ingest": "pipelines",
}
__all__ = ["__version__", *_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    room = _PUBLIC.get(name)
    if room is None:
        raise AttributeError(f"module 'sparsefleet' has no attribute {name!r}")
    return getattr(import_module(f"sparsefleet.{room}"), name)
