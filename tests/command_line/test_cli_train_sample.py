"""`cmbench train` and `sample`: the files that they leave."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import SMALL, files

from cmbench import records


def test_train_prints_where_its_checkpoints_are(cmbench, done):
    made = cmbench(
        "train", "--method", "cd", "edm", "--nfe", "1", "3", "--seed", "0", "1", *SMALL, "--out", done
    )
    assert made.status == 0
    paths = [Path(line) for line in made.out.splitlines()]
    names = [path.name.partition("-seed")[0] for path in paths]
    assert names == ["digits-cd", "digits-cd", "digits-edm"]
    assert all(path.is_file() for path in paths)


def test_force_trains_each_network_once(cmbench, tmp_path):
    words = ["train", "--method", "ct", "--nfe", "1", "2", *SMALL, "--out", tmp_path]
    assert cmbench(*words).status == 0
    made = cmbench(*words, "--force")
    assert made.err.count("train CT on Digits, seed 0: 40/40") == 1


@pytest.fixture
def sampled(cmbench, done, tmp_path):
    def sample(to: str, *extra: str) -> Path:
        made = cmbench(
            "sample", "--method", "cd", "--nfe", "2", "--to", tmp_path / to, *SMALL, "--out", done, *extra
        )
        assert made.status == 0
        assert made.out.strip() == str(tmp_path / to)
        return tmp_path / to

    return sample


def test_samples_as_npz_folder_and_grid_are_the_same(sampled):
    images = np.load(sampled("a.npz", "--count", "10"))["arr_0"]
    assert images.shape == (10, 8, 8, 1)
    assert images.dtype == np.uint8

    folder = sampled("folder", "--count", "10")
    names = sorted(p.name for p in folder.iterdir())
    assert names == [f"{i:06d}.png" for i in range(10)]
    for i, name in enumerate(names):
        assert np.array_equal(np.asarray(Image.open(folder / name)), images[i, ..., 0])

    grid = np.asarray(Image.open(sampled("grid.png", "--count", "10")))
    assert grid.shape == (3 * 8, 4 * 8)  # 4 columns, 3 rows, two places black
    for i in range(12):
        row, column = divmod(i, 4)
        tile = grid[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        assert np.array_equal(tile, images[i, ..., 0] if i < 10 else np.zeros((8, 8)))


def test_samples_are_those_of_the_records_preview(sampled, done):
    record = next(r for r in records.read(done) if (r.method, r.nfe, r.seed) == ("cd", 2, 1))
    ours = np.asarray(Image.open(sampled("grid.png", "--count", "64", "--seed", "1")).convert("L")).astype(
        int
    )
    preview = np.asarray(Image.open(done / "previews" / f"{record.key}.png").convert("L")).astype(int)
    assert ours.shape == (64, 64)
    tiles = {t.tobytes() for t in ours.reshape(8, 8, 8, 8).swapaxes(1, 2).reshape(64, 8, 8)}
    assert len(tiles) > 1
    assert preview.shape == ours.shape
    assert np.abs(preview - ours).max() <= 1


def test_samples_do_not_depend_on_count_or_batch_size_but_on_the_seed(sampled):
    first = np.load(sampled("a.npz", "--count", "10"))["arr_0"].astype(int)
    more = np.load(sampled("b.npz", "--count", "23", "--batch-size", "4"))["arr_0"].astype(int)
    other = np.load(sampled("c.npz", "--count", "10", "--seed", "1"))["arr_0"].astype(int)
    assert np.abs(first - more[:10]).max() <= 1
    assert np.abs(first - other).max() > 1


def test_sample_with_a_given_checkpoint_trains_nothing(sampled, done, tmp_path):
    cd = next(p for p in (done / "checkpoints").glob("digits-cd-seed0-*"))
    before = files(done)
    given = np.load(sampled("a.npz", "--count", "4", "--checkpoint", str(cd)))["arr_0"]
    own = np.load(sampled("b.npz", "--count", "4"))["arr_0"]
    assert np.array_equal(given, own)
    assert files(done) == before


@pytest.mark.slow
def test_ctrl_c_in_training_is_one_line_and_the_work_is_kept(tmp_path):
    import signal
    import time

    words = ["train", "--method", "ct", *SMALL, "--set", "ct.fit.steps=100000", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "cmbench", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    while not list(tmp_path.rglob("*.state")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "error: interrupted; the same command goes on where this one stopped"
    assert "Traceback" not in err
    assert len(list(tmp_path.rglob("*.state"))) == 1
