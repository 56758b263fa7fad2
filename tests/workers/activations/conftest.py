"""Fixtures that are shared with the tests of the pipelines."""

from ...networks import bert, llama, texts

__all__ = ["bert", "llama", "texts"]
