"""Sparse coding with a given dictionary: greedy pursuits, thresholding, lasso."""

from .coders import CODERS, Coder, load_coder_class, make_coder
from .given import Given
from .iht import iht
from .lasso import lasso
from .omp import batch_omp
from .problem import Pursued, Status, gram_matrix, reconstruct, squared_errors
from .simultaneous import simultaneous_omp
from .staged import staged
from .threshold import threshold

__all__ = [
    "CODERS",
    "Coder",
    "Given",
    "Pursued",
    "Status",
    "batch_omp",
    "gram_matrix",
    "iht",
    "lasso",
    "load_coder_class",
    "make_coder",
    "reconstruct",
    "simultaneous_omp",
    "squared_errors",
    "staged",
    "threshold",
]
