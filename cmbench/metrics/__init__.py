"""Evaluation protocols, extractors, metrics, and the engine that feeds them in one pass."""
