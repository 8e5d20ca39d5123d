"""The command line: what it accepts, what it prints where, and how it ends."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import SAMPLES, SETTINGS, files

from cmbench import console, records
from cmbench.cli import main

ROOT = Path(__file__).parent.parent
SMALL = ["--set", *SETTINGS, "--device", "cpu", "--offline"]


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMBENCH_CACHE", str(shared_cache))
    monkeypatch.setenv("COLUMNS", "200")
    return shared_cache


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def cmbench(capsys: pytest.CaptureFixture[str]):
    """Run a command line in this process."""

    def run(*words: str | Path) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Result(ended.value.code or 0, out, err)

    return run


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


def outcome(*words: str, env: dict[str, str] | None = None) -> Result:
    """Run a command line in a process of its own."""
    made = subprocess.run(
        [sys.executable, "-m", "cmbench", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
    )
    return Result(made.returncode, made.stdout, made.stderr)


# --- several values --------------------------------------------------------------------------------


def test_several_methods_numbers_and_seeds_after_one_flag(done):
    found = {(r.method, r.nfe, r.seed) for r in records.read(done)}
    assert found == {(m, n, s) for m in ("cd", "ddim") for n in (1, 2) for s in (0, 1)}


@pytest.mark.parametrize(
    "words",
    [
        ["--nfe", "1", "--nfe", "2", "--method", "cd", "--method", "ddim", "--seed", "0", "--seed", "1"],
        ["--method", "ddim", "cd", "ddim", "--nfe", "2", "1", "2", "--seed", "1", "0", "1"],
        ["-m", "cd", "ddim", "--seed", "0", "1", "--nfe=1", "--nfe", "2"],
    ],
)
def test_other_ways_to_say_the_same_find_the_same_records(cmbench, done, words):
    before = files(done)
    made = cmbench("run", *words, *SMALL, "--samples", SAMPLES, "--out", done, "--json")
    assert made.code == 0
    assert {(r["method"], r["nfe"], r["seed"]) for r in json.loads(made.out)} == {
        (m, n, s) for m in ("cd", "ddim") for n in (1, 2) for s in (0, 1)
    }
    assert made.err == "8 of 8 records were there already (--force computes them again)\n"
    assert files(done) == before


# --- wrong use: exit 2, one line -------------------------------------------------------------------

WRONG = [
    (["run", "--method", "cdd", "--nfe", "1"], "unknown method 'cdd': did you mean 'cd'?"),
    (["run", "--method", "cd", "--nfe", "0"], "'--nfe': Input should be greater than or equal to 1"),
    (["run", "--method", "cd", "--nfe", "-1"], "1"),
    (["run", "--method", "cd", "--nfe", "two"], "--nfe"),
    (["run", "--method", "cd", "--nfe"], "--nfe"),
    (["run", "--nfe", "1"], "--method"),
    (["run", "--method", "cd", "--nfe", "1", "--nef", "3"], "--nef"),
    (["run", "--method", "cd", "--nfe", "1", "--dataset", "digit"], "did you mean 'digits'"),
    (
        ["run", "--method", "cd", "--nfe", "1", "--dataset", "cifar10", "--data", "/no/such"],
        "nothing at /no/such",
    ),
    (["run", "--method", "cd", "--nfe", "1", "--dataset", "cifar10", "--offline"], "CIFAR-10"),
    (["run", "--method", "cd", "--nfe", "1", "--preset", "quikc"], "did you mean 'quick'"),
    (["run", "--method", "cd", "--nfe", "1", "--set", "cd.pionts=3"], "did you mean 'points'"),
    (["run", "--method", "cd", "--nfe", "1", "--set", "cd.points"], "key=value"),
    (["run", "--method", "ddim", "--nfe", "1", "--set", "pd.strat=4"], "did you mean 'start'"),
    (["run", "--method", "ddim", "--nfe", "1", "--device", "meta"], "--device meta"),
    (["run", "--method", "cd", "--nfe", "1", "--set", "smaples=3"], "did you mean 'samples'"),
    (["run", "--method", "cd", "--nfe", "1", "--set", "cd.points=many"], "cd.points: 'many' is not int"),
    (["run", "--method", "cd", "--nfe", "1", "--protocol", "digts"], "did you mean 'digits'"),
    (["run", "--method", "cd", "--nfe", "1", "--checkpoint", "/no/such"], "no checkpoint at /no/such"),
    (["run", "--method", "cd", "--nfe", "1", "--device", "cuda:77"], "--device cuda:77"),
    (["run", "--method", "cd", "--nfe", "1", "--device", "gpu"], "--device gpu"),
    (["run", "--method", "cd", "--nfe", "1", "--samples", "1"], "--samples"),
    (["run", "--method", "cd", "--nfe", "1", "--batch-size", "0"], "--batch-size"),
    (["run", "--method", "cd", "--nfe", "1", "--seed", "-1"], "--seed"),
    (["train", "--method", "ddim"], "ddim' trains nothing"),
    (["train", "--method", "cd", "ddim"], "ddim' trains nothing"),
    (["train", "--method", "pd", "--nfe", "3"], "pd at NFE 3: students exist for powers of two"),
    (["sample", "--method", "cd", "--nfe", "1", "--to", "x.jpg"], "--to x.jpg"),
    (["sample", "--method", "cd", "--nfe", "1", "2", "--to", "x.png"], "unexpected extra argument"),
    (["sample", "--method", "edm", "--nfe", "2", "--to", "x.png"], "edm at NFE 2: Heun takes an odd number"),
    (["table", "--published", "--format", "rts"], "rts"),
    (["table", "--paper", "3"], "--paper"),
    (["table", "--published", "--columns", "fdi"], "did you mean 'fid'"),
    (["figure", "nfe"], "no records under"),
    (["list", "method"], "did you mean 'methods'"),
    (["lsit"], "lsit"),
]


@pytest.mark.parametrize(("words", "part"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_wrong_use_is_one_line_and_exit_2_before_any_work(cmbench, tmp_path, monkeypatch, words, part):
    monkeypatch.chdir(tmp_path)
    made = cmbench(*words)
    assert made.code == 2
    assert made.out == ""
    assert made.err.startswith("error: ")
    assert made.err.count("\n") == 1
    assert part in made.err
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_wrong_use_in_a_process_of_its_own(tmp_path):
    made = outcome("run", "--method", "cdd", "--nfe", "1")
    assert (made.code, made.out, made.err) == (2, "", "error: unknown method 'cdd': did you mean 'cd'?\n")


@pytest.mark.skipif("__import__('torch').cuda.is_available()")
def test_a_gpu_that_is_not_there(cmbench, tmp_path):
    made = cmbench("run", "--method", "cd", "--nfe", "1", "--device", "cuda", "--out", tmp_path)
    assert made.code == 2
    assert made.err.startswith("error: --device cuda: ")
    assert made.err.count("\n") == 1


def test_a_wrong_setting_of_the_last_method_stops_the_first_from_training(cmbench, tmp_path):
    made = cmbench(
        "run", "--method", "cd", "pd", "--nfe", "1", *SMALL, "--set", "pd.strat=4", "--out", tmp_path
    )
    assert made.code == 2
    assert "did you mean 'start'" in made.err
    assert files(tmp_path) == {}


def test_methods_that_cannot_do_a_number_are_left_out_with_a_line(cmbench, done):
    made = cmbench(
        "run", "--method", "edm", "cd", "--nfe", "2", *SMALL, "--samples", SAMPLES, "--out", done, "--json"
    )
    assert made.code == 0
    assert [r["method"] for r in json.loads(made.out)] == ["cd"]
    assert "edm at NFE 2 is left out: Heun takes an odd number of evaluations" in made.err
    made = cmbench("run", "--method", "edm", "--nfe", "2", *SMALL, "--out", done)
    assert made.code == 2
    assert made.err.splitlines()[-1].startswith("error: none of these methods")


# --- failed work: exit 1 ---------------------------------------------------------------------------


def test_failed_work_is_one_line_and_exit_1(cmbench, tmp_path):
    words = ["train", "--method", "ct", *SMALL, "--set", "ct.fit.learning_rate=1e30", "ct.fit.optimizer=adam"]
    made = cmbench(*words, "--out", tmp_path)
    assert made.code == 1
    assert made.err.splitlines()[-1].startswith("error: training diverged")
    assert "Traceback" not in made.err


def test_a_damaged_record_is_named(cmbench, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x.json").write_text("{")
    made = cmbench("table", "--out", tmp_path)
    assert made.code == 1
    assert made.err.count("\n") == 1
    assert "x.json is not a readable record" in made.err


def test_a_fault_of_ours_is_one_line_too_and_a_traceback_with_debug(monkeypatch, capsys):
    def broken(out):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(records, "read", broken)
    with pytest.raises(SystemExit) as ended:
        main(["table"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: ZeroDivisionError: two lines (--debug shows where)\n"
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "table"])


def test_an_interrupt_ends_with_130(monkeypatch, capsys):
    def interrupted(out):
        raise KeyboardInterrupt

    monkeypatch.setattr(records, "read", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["table"])
    assert ended.value.code == 130
    assert "same command goes on" in capsys.readouterr().err


# --- help, version, lists --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["figure"], ["run", "--help"], ["figure", "nfe", "--help"]]
)
def test_help_is_on_stdout_and_no_error(cmbench, words):
    made = cmbench(*words)
    assert made.code == 0
    assert "Usage" in made.out
    assert made.err == ""


def test_help_lists_the_commands_in_the_order_of_use(cmbench):
    out = cmbench("--help").out
    places = [out.index(f" {name} ") for name in ("run", "train", "sample", "table", "list", "doctor")]
    assert places == sorted(places)


def test_version(cmbench):
    from cmbench import __version__

    assert cmbench("--version").out == f"cmbench {__version__}\n"


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("methods", {"cd", "ct", "edm", "ddim", "pd"}),
        ("datasets", {"digits", "mnist", "cifar10", "imagenet64", "lsun-bedroom", "lsun-cat", "images"}),
        ("protocols", {"cm-cifar10", "adm", "edm", "torch-fidelity", "digits"}),
    ],
)
def test_lists(cmbench, what: str, wanted: set[str]):
    rows = json.loads(cmbench("list", what, "--json").out)
    assert {row["name"] for row in rows} >= wanted
    shown = cmbench("list", what).out
    assert all(name in shown for name in wanted)


def test_list_of_recipes(cmbench):
    rows = json.loads(cmbench("list", "recipes", "--json").out)
    assert {"data set": "cifar10", "method": "cd", "presets": "smoke, quick, paper, released"} in rows


def test_json_is_json_where_colours_are_forced(cmbench, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr(console, "out", Console(force_terminal=True))
    json.loads(cmbench("list", "--json").out)
    json.loads(cmbench("doctor", "--json").out)


def test_doctor_says_what_is_there_and_how_to_get_the_rest(cmbench, cache):
    findings = {(f["topic"], f["item"]): f for f in json.loads(cmbench("doctor", "--json").out)}
    assert findings["package", "torch"]["state"] == "ok"
    assert findings["device", "cpu"]["state"] == "ok"
    assert findings["data set", "digits"]["state"] == "ok"
    assert findings["data set", "cifar10"]["state"] == "missing"
    assert findings["data set", "cifar10"]["detail"]
    assert str(cache) in findings["folder", "cache"]["detail"]
    assert findings["weights", "digits-cnn"]["state"] == "ok"
    assert all(f["state"] in ("ok", "missing", "note") and f["detail"] for f in findings.values())
    assert "digits" in cmbench("doctor").out


# --- tables and figures ----------------------------------------------------------------------------


@pytest.mark.parametrize(("paper", "name"), [(1, "table1_cifar10.csv"), (2, "table2_imagenet64_lsun256.csv")])
def test_published_tables_are_the_files_cell_by_cell(cmbench, paper: int, name: str):
    made = cmbench("table", "--published", "--paper", str(paper), "--format", "csv")
    assert made.code == 0
    shown = list(csv.DictReader(io.StringIO(made.out)))
    with (ROOT / "results" / "published" / name).open(newline="", encoding="utf-8") as file:
        stored = list(csv.DictReader(file))
    columns = [c for c in ("method", "nfe", "fid", "is", "precision", "recall") if c in stored[0]]
    assert set(columns) <= set(shown[0])
    assert [[row[c] for c in columns] for row in shown] == [[row[c] for c in columns] for row in stored]


def test_published_tables_in_every_format(cmbench):
    for format in ("rich", "md", "csv", "latex", "html", "json"):
        made = cmbench("table", "--published", "--paper", "1", "--format", format)
        assert made.code == 0
        assert "4.67" in made.out
        if format == "json":
            json.loads(made.out)


def test_table_of_records(cmbench, done):
    made = cmbench("table", "--out", done, "--format", "csv")
    assert made.code == 0
    rows = list(csv.DictReader(io.StringIO(made.out)))
    measured = [(row["method"], row["nfe"]) for row in rows if row["method"] in ("CD", "DDIM")]
    assert sorted(measured) == [("CD", "1"), ("CD", "2"), ("DDIM", "1"), ("DDIM", "2")]  # seeds share a row
    json.loads(cmbench("table", "--out", done, "--format", "json").out)


def test_table_without_records_says_how_to_make_some_on_stderr(cmbench, tmp_path):
    made = cmbench("table", "--out", tmp_path)
    assert (made.code, made.out) == (0, "")
    assert "cmbench run" in made.err


def test_figures(cmbench, done):
    for words in (["figure", "nfe"], ["figure", "pareto"], ["figure", "samples", "--seed", "1"]):
        made = cmbench(*words, "--out", done)
        assert made.code == 0
        paths = [Path(line) for line in made.out.splitlines()]
        assert {path.suffix for path in paths} == {".png", ".pdf", ".svg"}
        for path in paths:
            assert path.stat().st_size > 1000
            if path.suffix == ".png":
                assert Image.open(path).size > (100, 100)


# --- train and sample ------------------------------------------------------------------------------


def test_train_prints_where_its_checkpoints_are(cmbench, done):
    made = cmbench(
        "train", "--method", "cd", "edm", "--nfe", "1", "3", "--seed", "0", "1", *SMALL, "--out", done
    )
    assert made.code == 0
    paths = [Path(line) for line in made.out.splitlines()]
    names = [path.name.partition("-seed")[0] for path in paths]
    assert names == ["digits-cd", "digits-cd", "digits-edm"]
    assert all(path.is_file() for path in paths)


def test_force_trains_each_network_once(cmbench, tmp_path):
    words = ["train", "--method", "ct", "--nfe", "1", "2", *SMALL, "--out", tmp_path]
    assert cmbench(*words).code == 0
    made = cmbench(*words, "--force")
    assert made.err.count("train CT on Digits, seed 0: 40/40") == 1


@pytest.fixture
def sampled(cmbench, done, tmp_path):
    def sample(to: str, *extra: str) -> Path:
        made = cmbench(
            "sample", "--method", "cd", "--nfe", "2", "--to", tmp_path / to, *SMALL, "--out", done, *extra
        )
        assert made.code == 0
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


# --- speed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["run", "--help"],
        ["--version"],
        ["table", "--published"],
        ["figure", "--help"],
        ["run", "--method", "cdd", "--nfe", "1"],
    ],
)
def test_what_needs_no_torch_does_not_import_it(words):
    code = (
        "import sys\nfrom cmbench.cli import main\ntry: main(sys.argv[1:])\n"
        "except SystemExit: pass\nprint('TORCH' if 'torch' in sys.modules else 'LIGHT')"
    )
    made = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert made.stdout.splitlines()[-1] == "LIGHT"


def test_records_are_tabled_without_torch(done):
    code = (
        "import sys\nfrom cmbench.cli import main\ntry: main(['table', '--out', sys.argv[1]])\n"
        "except SystemExit as e: assert not e.code\nprint('TORCH' if 'torch' in sys.modules else 'LIGHT')"
    )
    made = subprocess.run([sys.executable, "-c", code, str(done)], capture_output=True, text=True, check=True)
    assert made.stdout.splitlines()[-1] == "LIGHT"


def test_output_into_a_closed_pipe_ends_quietly():
    made = subprocess.run(
        f"{sys.executable} -m cmbench table --published | head -1", shell=True, capture_output=True, text=True
    )
    assert made.stderr == ""


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
