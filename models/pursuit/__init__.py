"""Sparse coding with a given dictionary: greedy pursuits, thresholding, lasso."""

from .lasso import lasso
from .omp import batch_omp
from .problem import Pursued, Status, gram_matrix, reconstruct, squared_errors
from .threshold import threshold

__all__ = [
    "Pursued",
    "Status",
    "batch_omp",
    "gram_matrix",
    "lasso",
    "reconstruct",
    "squared_errors",
    "threshold",
]
