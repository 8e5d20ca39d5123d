"""Claims hold against other processes, and end with the process that holds them."""

import subprocess
import sys

import pytest

from cmbench.claims import Busy, claim

HOLD = """
import sys, time
from pathlib import Path
from cmbench.claims import claim
with claim(Path(sys.argv[1]), "work", wait=False):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the claim on "work"."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_what_another_process_is_at_is_busy(other, tmp_path):
    with pytest.raises(Busy, match="another process is making work"), claim(tmp_path, "work", wait=False):
        pass
    with claim(tmp_path, "other work", wait=False):
        pass


def test_a_claim_ends_with_its_process(other, tmp_path):
    other.kill()
    other.wait()
    with claim(tmp_path, "work", wait=True):
        pass
    with claim(tmp_path, "work", wait=False):  # and with its block
        pass
