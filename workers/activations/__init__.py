"""Activations of neural networks as data sets: taps on any torch module, sites of transformers, and the harvest."""

from .taps import Recording, Tap, record

__all__ = ["Recording", "Tap", "record"]
