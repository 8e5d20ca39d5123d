"""The plug-in of docs/add-a-method.md: installed, found, run, and the same as on the page."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from mixture import SHAPE, ExactNetwork, Mixture, train_on_mixture, two_sample_p

from cmbench import methods
from cmbench.diffusion.noise import NoiseRange
from cmbench.methods import Model
from cmbench.sampling.generate import EvaluationCounter, Source
from cmbench.training.fit import Fit

TESTS = Path(__file__).parent
PLUGIN = TESTS / "plugin"
PAGE = (TESTS.parent / "docs" / "add-a-method.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the plug-in installed, as pip would: its wheel, unpacked. Needs no network."""
    work = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PLUGIN, work / "source")
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", build, str(work)], cwd=work / "source", check=True, capture_output=True
    )
    (wheel,) = work.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(work / "site")
    return work / "site"


def cmbench(site: Path, *words: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "cmbench", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_it_is_listed(site: Path):
    rows = {row["name"]: row for row in json.loads(cmbench(site, "list", "methods", "--json").stdout)}
    assert {"cd", "edm", "renoise", "regress"} <= rows.keys()
    assert rows["renoise"]["nfe"] == "any" and not rows["renoise"]["trains"]
    assert rows["regress"]["nfe"] == "only 1" and rows["regress"]["parent"] == "edm"
    assert rows["regress"]["presets"] == {"digits": ["quick"]}
    assert {"name": "renoise.fresh", "default": "0.5"}.items() <= rows["renoise"]["settings"][0].items()


@pytest.mark.slow
def test_it_runs_and_stands_in_the_table(site: Path, tmp_path: Path, shared_cache: Path, monkeypatch):
    monkeypatch.setenv("CMBENCH_CACHE", str(shared_cache))
    done = cmbench(
        site, "run", "--method", "renoise", "regress", "--nfe", 1, 2, "--samples", 100, "--offline",
        "--device", "cpu", "--set", "regress.fit.steps=20", "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "regress at NFE 2 is left out: a student of one step" in done.stderr
    table = cmbench(site, "table", "--out", tmp_path, "--format", "json").stdout
    for label, nfe in (("Renoise", 1), ("Renoise", 2), ("Regress", 1)):
        assert re.search(rf'"{label}".*?"nfe": "?{nfe}\b', table, re.DOTALL), (label, nfe)
    stored = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")]
    assert sorted((r["method"], r["nfe_counted"]) for r in stored) == [
        ("regress", 1), ("renoise", 1), ("renoise", 2),
    ]  # fmt: skip


# --- against the known mixture -------------------------------------------------------------------


@pytest.fixture(autouse=True)
def importable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PLUGIN))


def samples(method, recipe, nfe, count=300, network=None):
    model = Model(network or ExactNetwork(Mixture()), NoiseRange())
    sampler = method.sampler(model, recipe, nfe)
    return Source(sampler, SHAPE, 0, 0, torch.device("cpu")).images(range(count))


def test_renoise_samples_the_mixture():
    from fewstep.renoise import RENOISE, RenoiseRecipe

    made = samples(RENOISE, RenoiseRecipe(), 40)
    assert two_sample_p(made, Mixture().sample(300, seed=1)) > 0.01


def test_without_fresh_noise_it_is_euler():
    from fewstep.renoise import RENOISE, RenoiseRecipe

    euler = methods.get("euler")
    made = samples(RENOISE, RenoiseRecipe(fresh=0.0), 7)
    torch.testing.assert_close(made, samples(euler, euler.recipe(), 7))


def test_it_spends_what_it_was_given():
    from fewstep.renoise import RENOISE, RenoiseRecipe

    network = ExactNetwork(Mixture())
    counter = EvaluationCounter(network)
    samples(RENOISE, RenoiseRecipe(), 5, count=3, network=network)
    assert counter.rows == 3 * 5


@pytest.mark.slow
def test_regress_learns_where_the_teacher_goes(tmp_path):
    from fewstep.regress import REGRESS, RegressRecipe

    fit = Fit(steps=800, batch_size=256, learning_rate=2e-3, schedule="cosine", ema=0.99)
    data = Mixture(centres=((0.2, -0.1),), weights=(1.0,))
    options = {"kind": "mlp", "width": 64, "blocks": 2, "embedding": 32}
    edm = methods.get("edm")
    teacher = train_on_mixture(edm, edm.recipe(fit=fit), tmp_path, data=data, network=options).network
    model = train_on_mixture(
        REGRESS, RegressRecipe(fit=fit), tmp_path, data=data, network=options, teacher=teacher
    )
    noise = torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(0))
    euler = methods.get("euler")
    goal = euler.sampler(Model(teacher, NoiseRange()), euler.recipe(), 8)(noise, None, None)
    made = REGRESS.sampler(model, RegressRecipe(), 1)(noise, None, None)
    before = REGRESS.sampler(Model(teacher, NoiseRange()), RegressRecipe(), 1)(noise, None, None)
    error, unlearnt = float((made - goal).square().mean()), float((before - goal).square().mean())
    assert error < unlearnt / 10, (error, unlearnt)


# --- the page --------------------------------------------------------------------------------------


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_page_shows_the_plug_in_and_nothing_else():
    files = [
        path for path in PLUGIN.rglob("*") if path.suffix in (".py", ".toml") and path.stat().st_size > 50
    ]
    sources = {str(path.relative_to(PLUGIN)): path.read_text(encoding="utf-8") for path in files}
    shown = blocks("python") + blocks("toml")
    tested = Path(__file__).read_text(encoding="utf-8")
    for block in shown:
        assert any(block in text for text in [*sources.values(), tested]), block
    for name, text in sources.items():
        rest = text
        for block in shown:
            rest = rest.replace(block, "")
        assert rest.strip() == "", f"{name} is not whole on the page: {rest}"


def test_the_first_method_takes_less_than_60_lines():
    project = [line for line in (PLUGIN / "pyproject.toml").read_text().splitlines() if "regress" not in line]
    assert len(project) + len((PLUGIN / "fewstep" / "renoise.py").read_text().splitlines()) < 60


def test_commands_on_the_page_exist():
    from typer.main import get_command

    from cmbench.cli import app

    known = set(get_command(app).commands)
    used = set(re.findall(r"^cmbench (\w+)", "\n".join(blocks("")), re.MULTILINE))
    assert used and used <= known
