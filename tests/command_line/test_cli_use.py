"""The command line: what it accepts, what it prints where, and how it ends."""

import json
import os
import subprocess
import sys

import pytest
from commands import Result
from tiny_runs import SAMPLES, SMALL, files

from cmbench import records
from cmbench.cli import main

# --- several values -----------------------------------------------------------------------------------


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
    assert made.status == 0
    assert {(r["method"], r["nfe"], r["seed"]) for r in json.loads(made.out)} == {
        (m, n, s) for m in ("cd", "ddim") for n in (1, 2) for s in (0, 1)
    }
    assert made.err == "8 of 8 records were there already (--force computes them again)\n"
    assert files(done) == before


# --- wrong use: exit 2, one line ----------------------------------------------------------------------


def outcome(*words: str, env: dict[str, str] | None = None) -> Result:
    """Run a command line in a process of its own."""
    made = subprocess.run(
        [sys.executable, "-m", "cmbench", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
    )
    return Result(made.returncode, made.stdout, made.stderr)


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
    (["run", "--method", "cd", "--nfe", "1", "--dataset", "mnist", "--offline"], "MNIST"),
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
    assert made.status == 2
    assert made.out == ""
    assert made.err.startswith("error: ")
    assert made.err.count("\n") == 1
    assert part in made.err
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_wrong_use_in_a_process_of_its_own(tmp_path):
    made = outcome("run", "--method", "cdd", "--nfe", "1")
    assert (made.status, made.out, made.err) == (2, "", "error: unknown method 'cdd': did you mean 'cd'?\n")


@pytest.mark.skipif("__import__('torch').cuda.is_available()")
def test_a_gpu_that_is_not_there(cmbench, tmp_path):
    made = cmbench("run", "--method", "cd", "--nfe", "1", "--device", "cuda", "--out", tmp_path)
    assert made.status == 2
    assert made.err.startswith("error: --device cuda: ")
    assert made.err.count("\n") == 1


def test_a_wrong_setting_of_the_last_method_stops_the_first_from_training(cmbench, tmp_path):
    made = cmbench(
        "run", "--method", "cd", "pd", "--nfe", "1", *SMALL, "--set", "pd.strat=4", "--out", tmp_path
    )
    assert made.status == 2
    assert "did you mean 'start'" in made.err
    assert files(tmp_path) == {}


def test_methods_that_cannot_do_a_number_are_left_out_with_a_line(cmbench, done):
    made = cmbench(
        "run", "--method", "edm", "cd", "--nfe", "2", *SMALL, "--samples", SAMPLES, "--out", done, "--json"
    )
    assert made.status == 0
    assert [r["method"] for r in json.loads(made.out)] == ["cd"]
    assert "edm at NFE 2 is left out: Heun takes an odd number of evaluations" in made.err
    made = cmbench("run", "--method", "edm", "--nfe", "2", *SMALL, "--out", done)
    assert made.status == 2
    assert made.err.splitlines()[-1].startswith("error: none of these methods")


# --- failed work: exit 1 ------------------------------------------------------------------------------


def test_failed_work_is_one_line_and_exit_1(cmbench, tmp_path):
    words = ["train", "--method", "ct", *SMALL, "--set", "ct.fit.learning_rate=1e30", "ct.fit.optimizer=adam"]
    made = cmbench(*words, "--out", tmp_path)
    assert made.status == 1
    assert made.err.splitlines()[-1].startswith("error: training diverged")
    assert "Traceback" not in made.err


def test_a_damaged_record_is_named(cmbench, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x.json").write_text("{")
    made = cmbench("table", "--out", tmp_path)
    assert made.status == 1
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


# --- help, version ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["figure"], ["run", "--help"], ["figure", "nfe", "--help"]]
)
def test_help_is_on_stdout_and_no_error(cmbench, words):
    made = cmbench(*words)
    assert made.status == 0
    assert "Usage" in made.out
    assert made.err == ""


def test_help_lists_the_commands_in_the_order_of_use(cmbench):
    out = cmbench("--help").out
    places = [out.index(f" {name} ") for name in ("run", "train", "sample", "table", "list", "doctor")]
    assert places == sorted(places)


def test_version(cmbench):
    from cmbench import __version__

    assert cmbench("--version").out == f"cmbench {__version__}\n"


# --- speed --------------------------------------------------------------------------------------------


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


def test_output_into_a_closed_pipe_ends_quietly():
    made = subprocess.run(
        f"{sys.executable} -m cmbench table --published | head -1", shell=True, capture_output=True, text=True
    )
    assert made.stderr == ""
