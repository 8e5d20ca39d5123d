"""Commands in this process, and a results folder that they have filled."""

from pathlib import Path

import pytest
from commands import Commands
from tiny_runs import SAMPLES, SMALL

from cmbench.cli import main


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMBENCH_CACHE", str(shared_cache))
    monkeypatch.setenv("COLUMNS", "200")
    return shared_cache


@pytest.fixture
def cmbench(capsys: pytest.CaptureFixture[str]) -> Commands:
    """Run a command line in this process."""
    return Commands(capsys)


@pytest.fixture(scope="module")
def done(tmp_path_factory, shared_cache):
    """Records of two methods, two NFE and two seeds."""
    out = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMBENCH_CACHE", str(shared_cache))
        with pytest.raises(SystemExit) as ended:
            main(
                ["run", "--method", "cd", "ddim", "--nfe", "1", "2", "--seed", "0", "1", *SMALL,
                 "--samples", str(SAMPLES), "--out", str(out)]
            )  # fmt: skip
    assert not ended.value.code
    return out
