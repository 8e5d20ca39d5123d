"""What the parity tests share."""

from pathlib import Path

import pytest
import torch
from seeded_inception import calibrated_inception


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file in torch-fidelity's layout."""
    path = tmp_path_factory.mktemp("weights") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(calibrated_inception().state_dict(), path)
    return path
