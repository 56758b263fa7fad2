"""Sparse autoencoders: an encoder predicts the code, and gradients teach both it and the dictionary."""
