"""Experiments by name: `sparsefleet learn --recipe bars-bsc`. One YAML file in this folder a recipe; recipe.py says
what it may hold, checks.py measures what came out."""

from .recipe import Recipe, load_recipe, recipe_names

__all__ = ["Recipe", "load_recipe", "recipe_names"]
