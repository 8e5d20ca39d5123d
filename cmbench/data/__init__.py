"""Data sets: named sources of uint8 images and labels."""

from cmbench.data.base import DatasetSpec, ImageData, open_dataset
from cmbench.data.folders import open_images

__all__ = ["DatasetSpec", "ImageData", "open_dataset", "open_images"]
