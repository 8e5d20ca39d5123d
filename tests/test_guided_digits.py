"""A class-conditional network of the digits draws the digit it is asked for, the more surely the more it is guided."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Commands

from cmbench.metrics import classifiers
from cmbench.sampling.seeds import class_labels

COUNT = 400


@pytest.mark.slow
def test_the_classifier_agrees_with_the_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cmbench = Commands(capsys)
    (weights,) = classifiers.ASSETS.glob("digits-cnn*.safetensors")
    classifier = classifiers.load(weights)

    def share(*settings: str, labels: torch.Tensor, extra: tuple[object, ...] = ()) -> float:
        to = tmp_path / "samples.npz"
        made = cmbench(
            "sample", "--method", "edm", "--nfe", 15, "--count", COUNT, "--to", to, "--device", "cpu",
            "--offline", "--out", tmp_path, *extra, "--set", "network.class_conditional=true",
            "network.width=128", "edm.label_dropout=0.1", "edm.fit.steps=1500", "edm.fit.batch_size=128",
            *settings,
        )  # fmt: skip
        assert made.status == 0, made.err
        images = torch.from_numpy(np.load(to)["arr_0"]).permute(0, 3, 1, 2)
        return float((classifier(images)[1].argmax(1) == labels).float().mean())

    drawn = class_labels(0, range(COUNT), 10)
    right = [share(f"guidance={w}", labels=drawn) for w in (0.0, 1.0, 2.0)]
    assert right[0] < 0.2 < 0.7 < right[1] < right[2], right
    threes = torch.full((COUNT,), 3)
    assert share("guidance=2", labels=threes, extra=("--label", 3)) > 0.9
