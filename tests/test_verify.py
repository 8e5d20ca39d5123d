"""`cmbench verify` passes here, notices a wrong computation, and its golden values are not only our own word."""

import json

import numpy as np
import pytest
import torch
from commands import Commands
from scipy.linalg import sqrtm

from cmbench import verify
from cmbench.data.digits import DIGITS
from cmbench.metrics import protocols
from cmbench.metrics.engine import Engine


@pytest.fixture
def cmbench(capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(capsys)


def test_this_installation_computes_what_it_should(cmbench: Commands) -> None:
    done = cmbench("verify", "--json")
    checks = json.loads(done.out)
    assert done.status == 0
    assert {check["ok"] for check in checks} == {True, None}
    (left_out,) = [check for check in checks if check["ok"] is None]
    assert left_out["expected"].startswith("not checked: inception-v3 weights not found")


def test_the_table_names_expected_got_and_tolerance(cmbench: Commands) -> None:
    done = cmbench("verify")
    assert done.out.split()[:5] == ["check", "expected", "got", "tolerance", "ok"]
    assert "Fréchet distance" in done.out and "5.46005" in done.out


@pytest.mark.parametrize(
    ("name", "wrong", "noticed"),
    [
        (
            "quantize",
            lambda images, mode: (images * 127.5 + 127.9).clamp(0, 255).byte(),
            "truncation to uint8",
        ),
        ("frechet_distance", lambda *_: 0.0, "Fréchet distance"),
        ("initial_noise", lambda *_: torch.zeros(4), "noise of sample 5, seed 3"),
        ("resize", lambda images, size, mode: torch.full((1, 1, size, size), 50.0), "resize tf1-bilinear"),
    ],
)
def test_a_wrong_computation_is_noticed(
    cmbench: Commands, monkeypatch: pytest.MonkeyPatch, name: str, wrong: object, noticed: str
) -> None:
    monkeypatch.setattr(verify, name, wrong)
    done = cmbench("verify")
    assert done.status == 1
    assert "checks failed" in done.error and noticed in done.error and "FAILED" in done.out


def test_not_a_number_is_no_agreement() -> None:
    assert verify._check("x", (0.0,), 1e-3, lambda: float("nan")).ok is False
    assert verify._check("x", (0.0,), 1e-3, lambda: [0.0, 0.0]).ok is False
    assert verify._check("x", (5.0,), 0, lambda: 5.0).ok is True


def test_golden_figures_of_the_digits_follow_from_their_features() -> None:
    engine = Engine.open(protocols.get("digits"))
    shard = engine.shard()
    engine.update(shard, torch.from_numpy(DIGITS.load(None, False).read(np.arange(1797))), 0)
    engine.flush(shard)
    rows = shard.layers["digits-cnn/features"].rows().astype(np.float64)
    a, b = rows[:898], rows[898:]
    root = np.real(np.trace(sqrtm(np.cov(a.T) @ np.cov(b.T))))
    distance = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T)) - 2 * root

    def far(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(x[:, None] - y[None]).sum(-1))

    precision = (far(a, b) <= np.sort(far(b, b), 1)[:, 3]).any(1).sum()
    recall = (far(b, a) <= np.sort(far(a, a), 1)[:, 3]).any(1).sum()
    logits = torch.from_numpy(shard.layers["digits-cnn/logits"].rows()[:898]).double()
    order = np.random.RandomState(2020).permutation(898)
    scores = []
    for split in _cut(order, 10):
        p = torch.softmax(logits[split], 1)
        scores.append(float((p * (p.log() - p.mean(0).log())).sum(1).mean().exp()))
    golden = {name: expected[0] for name, expected, *_ in verify._golden()}
    assert golden["FD-digits, first half against second"] == pytest.approx(distance, rel=1e-5)
    assert golden["Prec-digits, first half against second"] * 898 == pytest.approx(precision, abs=1)
    assert golden["Rec-digits, first half against second"] * 899 == pytest.approx(recall, abs=1)
    assert golden["IS-digits, first half"] == pytest.approx(np.mean(scores), rel=1e-5)


def _cut(order: np.ndarray, parts: int) -> list[np.ndarray]:
    """torch-fidelity's parts: rows i N / parts to (i + 1) N / parts."""
    N = len(order)
    return [order[i * N // parts : (i + 1) * N // parts] for i in range(parts)]


@pytest.mark.slow
def test_other_code_computes_the_same(cmbench: Commands) -> None:
    done = cmbench("verify", "--full", "--json")
    names = [check["name"] for check in json.loads(done.out) if check["ok"]]
    assert done.status == 0
    assert {"KID, torch-fidelity", "Fréchet distance, SciPy's matrix root"} <= set(names)
