"""Experiments as recipes: arms that are compared at every milestone of a training, or at every NFE."""
