"""Interpolation strips that were made: for each a PNG and a JSON file of one name, under ``OUT/interpolation``.

Figures are made from these alone; this module imports no torch.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmbench.errors import UsageError, WorkError
from cmbench.paths import atomic
from cmbench.records import fingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]

SCHEMA = 1
FOLDER = "interpolation"


@dataclass(frozen=True)
class Strip:
    """Images on the way from one sample of a seed to another, by one network.

    Attributes:
        method, label, group: of the method.
        dataset: registered name.
        nfe: evaluations asked for.
        evaluations: network evaluations an image, counted.
        seed: of training and noise.
        between: indices of the samples at its two ends.
        steps: images, both ends included.
        identity: all that determined it.
        environment: versions, commit, device and time.
    """

    method: str
    label: str
    group: str
    dataset: str
    nfe: int
    evaluations: float
    seed: int
    between: tuple[int, int]
    steps: int
    identity: Mapping[str, Any]
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Hash of the identity."""
        return fingerprint(self.identity)

    @property
    def stem(self) -> str:
        """Name of its files, without ending."""
        first, last = self.between
        return f"{self.dataset}-{self.method}-nfe{self.nfe}-seed{self.seed}-{first}-{last}-{self.key}"


def write(out: Path, strip: Strip, images: "Images") -> Path:
    """Store a strip, uint8 [steps, C, H, W] with C of 1 or 3, and return the path of its picture."""
    import numpy as np
    from PIL import Image

    folder = out / FOLDER
    wide = np.concatenate(list(images), axis=2)  # [C, H, steps W]
    picture = folder / f"{strip.stem}.png"
    with atomic(picture) as temporary:
        sheet = wide[0] if len(wide) == 1 else np.ascontiguousarray(wide.transpose(1, 2, 0))
        Image.fromarray(sheet).save(temporary, format="PNG")
    content = json.dumps({"schema": SCHEMA, **dataclasses.asdict(strip)}, indent=1, ensure_ascii=False)
    with atomic(folder / f"{strip.stem}.json") as temporary:
        temporary.write_text(content + "\n", encoding="utf-8")
    return picture


def read_all(out: Path) -> list[Strip]:
    """All strips under OUT, in the order of their file names. Raises WorkError where a file is damaged."""
    return [_read(path) for path in sorted((out / FOLDER).glob("*.json"))]


def _read(path: Path) -> Strip:
    try:
        content = json.loads(path.read_text("utf-8"))
        if content.pop("schema") != SCHEMA:
            raise ValueError(f"it holds no interpolation strip of schema {SCHEMA}")
        first, last = content["between"]
        return Strip(**{**content, "between": (int(first), int(last))})
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise WorkError(f"{path} is not a readable interpolation strip: {error}") from error


def read_images(out: Path, strip: Strip) -> "Images":
    """Its images, uint8 [steps, H, W] or [steps, H, W, 3]. Raises WorkError where they are missing or damaged."""
    import numpy as np
    from PIL import Image

    path = out / FOLDER / f"{strip.stem}.png"
    try:
        with Image.open(path) as picture:
            sheet = np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"))
        return np.stack(np.split(sheet, strip.steps, axis=1))
    except (OSError, ValueError) as error:
        raise WorkError(f"{path} is not a readable picture of {strip.steps} images: {error}") from error


def pairs(between: Sequence[int]) -> list[tuple[int, int]]:
    """Indices in a row as pairs: 0, 1, 2, 3 is from sample 0 to 1, and from 2 to 3. Raises UsageError otherwise."""
    if len(between) % 2 or min(between, default=0) < 0:
        raise UsageError(
            f"--between {' '.join(map(str, between))}: two indices of samples for each strip, as 0 1"
        )
    return list(dict.fromkeys(zip(between[::2], between[1::2], strict=True)))
