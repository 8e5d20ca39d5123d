"""Checkpoints: safetensors with a JSON header."""
