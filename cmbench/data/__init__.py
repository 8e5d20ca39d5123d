"""Data sets: named sources of uint8 images and labels."""
