"""Recipes: TOML, one per data set and method."""
