"""The 1,797 handwritten digits that scikit-learn carries (UCI optical recognition of digits, test set)."""

from pathlib import Path

import numpy as np

from cmbench.data.base import ArraySource, DatasetSpec, ImageData
from cmbench.errors import UsageError


def load(data: Path | None, download: bool) -> ImageData:  # noqa: ARG001 (nothing is ever downloaded)
    """All digits, 1 x 8 x 8, in scikit-learn's order; grey value v in 0 .. 16 becomes round(255 v / 16).

    Raises:
        UsageError: a folder was given.
    """
    if data is not None:
        raise UsageError(f"the digits are built in: leave {data} away, or open it as the data set 'images'")
    from sklearn.datasets import load_digits  # a second of import that only this set needs

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return ImageData(DIGITS.name, DIGITS.title, ArraySource(images), digits.target.astype(np.int64), 10)


DIGITS = DatasetSpec(
    name="digits",
    title="Digits",
    shape=(1, 8, 8),
    classes=10,
    load=load,
    how_to_get="built in",
    locate=lambda _: "built in",
)
