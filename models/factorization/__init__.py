"""Dictionaries learned from codes of single rows: MOD, K-SVD, online, orthogonal, semi- and non-negative."""
