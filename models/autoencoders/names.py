"""Names of an autoencoder's parameters beside its weights."""

from ..base import TRAINING

FIRST, SECOND = f"{TRAINING}first/", f"{TRAINING}second/"
"""Before a weight's name: Adam's moments."""
STEPS, TOKENS = f"{TRAINING}steps", f"{TRAINING}tokens"
"""Updates, and the rows behind them."""
SILENT, DEAD = f"{TRAINING}silent", f"{TRAINING}dead_tokens"
"""Rows since a latent fired, [H]; from how many it counts as dead."""
RESIDUAL, VARIANCE = f"{TRAINING}residual_variance", f"{TRAINING}variance"
"""Variance of the residual in the previous update (scaled units), and of the data (their own)."""
