"""`cmbench edit` on files, its measurement, and the figure made from that."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Commands
from PIL import Image
from tiny_runs import SMALL, shop

from cmbench import checkpoints, methods
from cmbench.checkpoints import Header
from cmbench.diffusion.noise import NoiseRange
from cmbench.editing import records
from cmbench.editing.measure import run_editing
from cmbench.editing.records import Cell, Editing
from cmbench.errors import UsageError, WorkError
from cmbench.networks import build


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMBENCH_CACHE", str(shared_cache))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # no backbone of LPIPS
    return shared_cache


@pytest.fixture
def cmbench(capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(capsys)


def checkpoint(path: Path, method: str, shape: tuple[int, int, int], dataset: str, classes: int = 0) -> Path:
    """A network with random weights, as a trained checkpoint of the method."""
    torch.manual_seed(0)
    network = {"kind": "mlp", "width": 16, "blocks": 1, "embedding": 16, "class_conditional": classes > 0}
    made = build(network, shape, classes)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    recipe = {"points": 8} if method == "cd" else {}
    head = Header(method, "", dataset, shape, classes, network, NoiseRange(), recipe, "key", 0, 1.0)
    return checkpoints.save(path, made, head).path


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of grey and of RGB networks, images and masks."""
    folder = tmp_path_factory.mktemp("desk")
    checkpoint(folder / "grey.safetensors", "cd", (1, 8, 8), "digits")
    checkpoint(folder / "rgb.safetensors", "cd", (3, 8, 8), "cifar10")
    checkpoint(folder / "classes.safetensors", "cd", (3, 8, 8), "cifar10", classes=10)
    checkpoint(folder / "edm.safetensors", "edm", (1, 8, 8), "digits")
    rng = np.random.default_rng(0)
    random = lambda *shape: rng.integers(0, 256, shape, np.uint8)  # noqa: E731
    for name in ("a", "b"):
        Image.fromarray(random(8, 8)).save(folder / f"{name}.png")
        Image.fromarray(random(8, 8, 3)).save(folder / f"{name}-rgb.png")
    Image.fromarray(random(4, 4)).save(folder / "low.png")
    Image.fromarray(random(9, 8)).save(folder / "odd.png")
    Image.fromarray(random(20, 16)).save(folder / "large.png")
    Image.fromarray(random(8, 8, 4)).save(folder / "rgba.png")
    Image.fromarray(rng.integers(0, 2**16, (8, 8), np.uint16)).save(folder / "deep.png")
    (folder / "junk.png").write_text("no image")
    mask = np.zeros((8, 8), np.uint8)
    Image.fromarray(mask).save(folder / "empty.png")
    Image.fromarray(mask + 255).save(folder / "full.png")
    mask[2:5, 3:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(folder / "wide.png")
    return folder


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(float)


# --- files ----------------------------------------------------------------------------------------


def test_inpainting_keeps_what_the_mask_keeps(cmbench: Commands, desk: Path, tmp_path: Path) -> None:
    words = ("edit", "inpaint", desk / "a.png", desk / "b.png", "--mask", desk / "mask.png",
             "--checkpoint", desk / "grey.safetensors", "--device", "cpu")  # fmt: skip
    done = cmbench(*words, "--count", 2, "--to", tmp_path / "all")
    assert done.status == 0, done.err
    names = ["a-inpaint-0.png", "a-inpaint-1.png", "b-inpaint-0.png", "b-inpaint-1.png"]
    assert done.out.split() == [str(tmp_path / "all" / name) for name in names]
    missing = pixels(desk / "mask.png") > 0
    made = {name: pixels(tmp_path / "all" / name) for name in names}
    for name, image in made.items():
        before = pixels(desk / f"{name[0]}.png")
        assert (image[~missing] == before[~missing]).all() and (image[missing] != before[missing]).any()
    assert (made[names[0]] != made[names[1]]).any()
    # One image's result is the same whatever is edited beside it; another seed gives another.
    only = ("edit", "inpaint", desk / "a.png", *words[4:])
    assert cmbench(*only, "--to", tmp_path / "one.png").status == 0
    assert (pixels(tmp_path / "one.png") == made["a-inpaint-0.png"]).all()
    assert cmbench(*only, "--seed", 1, "--to", tmp_path / "two.png").status == 0
    assert (pixels(tmp_path / "two.png") != made["a-inpaint-0.png"]).any()


def test_superresolution_keeps_the_means_and_colorization_the_luma(
    cmbench: Commands, desk: Path, tmp_path: Path
) -> None:
    small, colour = desk / "grey.safetensors", desk / "rgb.safetensors"
    to = tmp_path / "large.png"
    assert cmbench("edit", "superres", desk / "low.png", "--checkpoint", small, "--to", to).status == 0
    means = pixels(to).reshape(4, 2, 4, 2).mean((1, 3))
    assert np.abs(means - pixels(desk / "low.png")).max() <= 0.5
    to = tmp_path / "colour.png"
    assert cmbench("edit", "colorize", desk / "a.png", "--checkpoint", colour, "--to", to).status == 0
    luma = pixels(to) @ (0.2989, 0.587, 0.114)
    assert np.abs(luma - pixels(desk / "a.png") * 0.9999).max() <= 0.5
    assert pixels(to).std(axis=2).max() > 1


def test_strokes_noise_and_interpolation(cmbench: Commands, desk: Path, tmp_path: Path) -> None:
    given = ("--checkpoint", desk / "grey.safetensors", "--device", "cpu")
    to = tmp_path / "made.png"
    part = ("--mask", desk / "mask.png")
    assert cmbench("edit", "stroke", desk / "a.png", *part, *given, "--to", to).status == 0
    missing = pixels(desk / "mask.png") > 0
    assert (pixels(to)[~missing] == pixels(desk / "a.png")[~missing]).all()
    assert cmbench("edit", "denoise", desk / "a.png", "--sigma", 0.3, *given, "--to", to).status == 0
    assert pixels(to).shape == (8, 8)
    teacher = ("--checkpoint", desk / "grey.safetensors", desk / "edm.safetensors")
    done = cmbench("edit", "interpolate", desk / "a.png", desk / "b.png", "--steps", 5, *teacher, "--to", to)
    assert done.status == 0, done.err
    assert pixels(to).shape == (8, 40)


def test_images_are_fitted_where_asked(cmbench: Commands, desk: Path, tmp_path: Path) -> None:
    to = tmp_path / "made.png"
    words = ("--mask", desk / "mask.png", "--checkpoint", desk / "grey.safetensors", "--fit", "--to", to)
    for name in ("large.png", "a-rgb.png"):
        assert cmbench("edit", "inpaint", desk / name, *words).status == 0
        assert pixels(to).shape == (8, 8)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("inpaint odd.png --mask mask.png", "odd.png is 8 × 9, the network's images are 8 × 8"),
        ("inpaint a.png --mask wide.png", "is 9 × 8, the network's images are 8 × 8"),
        ("inpaint a.png --mask empty.png", "has no white pixel"),
        ("inpaint a.png --mask full.png", "is all white"),
        ("inpaint a.png --mask rgba.png", "alpha channel"),
        ("inpaint rgba.png --mask mask.png", "has an alpha channel"),
        ("inpaint deep.png --mask mask.png", "more than 8 bits"),
        ("inpaint junk.png --mask mask.png", "is damaged or no image"),
        ("inpaint none.png --mask mask.png", "no image at"),
        ("inpaint a-rgb.png --mask mask.png", "is in colour"),
        ("inpaint a.png --mask mask.png --to x.jpg", "give a .png"),
        ("inpaint a.png --mask mask.png --method edm", "has none; methods that have: "),
        ("inpaint a.png --mask mask.png --method ct", "is of 'cd', not of 'ct'"),
        ("inpaint a.png --mask mask.png --method dc", "did you mean"),
        ("inpaint a.png --mask mask.png --label 3", "class-conditional"),
        ("colorize a.png", "images are grey"),
        ("superres low.png --factor 3", "do not fill 8 × 8"),
        ("superres odd.png", "8 × 8, or 4 × 4"),
        ("stroke a.png --sigma 100", "from 0.002 to 80"),
        ("interpolate a.png", "takes two images"),
        ("interpolate a.png b.png --nfe 2", "--nfe is for strips between samples"),
        ("interpolate --between 1", "two indices of samples"),
        ("interpolate --between 1 -1", "-1"),
        ("interpolate --label 3", "class-conditional"),
        ("interpolate --method pd", "no method asked for uses a network of 'cd'"),
        ("measure --task inpant", "did you mean 'inpaint'"),
        ("measure --task colorize", "are grey"),
        ("measure --method pd", "has none"),
        ("measure --images 9999", "there are 1797"),
    ],
)
def test_bad_input_is_one_clear_line(
    cmbench: Commands, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: str
) -> None:
    monkeypatch.chdir(desk)
    more: list[object] = (
        ["--out", tmp_path] if words.startswith("measure") else ["--checkpoint", "grey.safetensors"]
    )
    if "--to" not in words and not words.startswith("measure"):
        more += ["--to", tmp_path / "made.png"]
    done = cmbench("edit", *words.split(), *more)
    assert done.status in (1, 2) and said in done.error


def test_a_class_conditional_network_is_told_the_class(cmbench: Commands, desk: Path, tmp_path: Path) -> None:
    words = ("edit", "colorize", desk / "a.png", "--checkpoint", desk / "classes.safetensors")
    assert "--label 3" in cmbench(*words, "--to", tmp_path / "a.png").error
    for label in (3, 4):
        assert cmbench(*words, "--label", label, "--to", tmp_path / f"{label}.png").status == 0
    assert (pixels(tmp_path / "3.png") != pixels(tmp_path / "4.png")).any()


# --- measured -------------------------------------------------------------------------------------

IMAGES, NFES = 10, (1, 5)


def measured(out: Path, **changes: object) -> tuple[Editing, list[str]]:
    """The results, and the titles of what was computed."""
    titles: dict[str, None] = {}
    given: dict[str, object] = {
        "wanted": ("superres", "denoise"),
        "seeds": (0, 1),
        "nfes": NFES,
        "images": IMAGES,
    }
    made = run_editing(
        shop(out),
        download=False,
        on_images=lambda title, *_: titles.update({title: None}),
        **{**given, **changes},
    )  # type: ignore[arg-type]
    return made, [title for title in titles if title != "reference features"]


def timeless(made: Editing) -> list[Cell]:
    return [Cell(**{**vars(cell), "seconds": 0.0}) for cell in made.cells]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMBENCH_CACHE", str(shared_cache))
        patch.setenv("TORCH_HOME", str(folder / "torch"))
        measured(folder)
    return folder


def test_every_cell_is_measured_and_counted(out: Path) -> None:
    made = records.read(out, "digits")
    assert made is not None and made.images == IMAGES and "vgg16" in made.missing["lpips"]
    found = {(cell.task, cell.method, cell.nfe, cell.seed): cell for cell in made.cells}
    seeds = (0, 1)
    wanted = {("superres", name, 0, 0) for name in ("input", "bicubic", "truth")}
    wanted |= {("denoise", "input", 0, seed) for seed in seeds} | {("denoise", "truth", 0, 0)}
    wanted |= {
        (t, m, n, s)
        for t in ("superres", "denoise")
        for m in ("cd", "ddim", "edm")
        for n in NFES
        for s in seeds
    }
    wanted |= {("superres", "ancestral", n, s) for n in NFES for s in seeds}
    wanted |= {("superres", "repaint", 5, s) for s in seeds}
    assert set(found) == wanted
    for (task, method, nfe, _), cell in found.items():
        assert cell.evaluations == nfe
        assert (out / "experiments" / cell.picture).is_file()
        assert ("psnr" in cell.metrics) == (method != "truth")
        if task == "superres" and method not in ("truth", "bicubic"):
            assert cell.metrics["given_max"] <= 0.5 + 1e-6
    assert found["superres", "bicubic", 0, 0].metrics["given_max"] > 1


def test_finished_cells_are_not_computed_again(out: Path, tmp_path: Path) -> None:
    whole, computed = measured(out)
    assert computed == []
    shutil_copy(out / "checkpoints", tmp_path / "checkpoints")
    measured(tmp_path, wanted=("superres",), seeds=(0,))
    parts, computed = measured(tmp_path)
    assert computed and not any(
        title.startswith("Super-resolution") and "seed 0" in title for title in computed
    )
    by_place = lambda cells: sorted(cells, key=lambda cell: cell.place)  # noqa: E731
    assert by_place(timeless(parts)) == by_place(timeless(whole))


def shutil_copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target)


def test_results_of_other_images_are_not_mixed(out: Path) -> None:
    with pytest.raises(UsageError, match="measured on 10 of the 1,797 training images"):
        measured(out, images=11)


def test_the_command_prints_tables_and_json(
    cmbench: Commands, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = (
        "edit",
        "measure",
        "--task",
        "superres",
        "denoise",
        "--seed",
        0,
        1,
        "--nfe",
        *NFES,
        "--images",
        IMAGES,
    )
    done = cmbench(*words, *SMALL, "--out", out)
    assert done.status == 0, done.err
    for said in ("Super-resolution: means of 2 × 2 blocks", "RePaint × 4", "digits-cnn ↓", "bicubic"):
        assert said in done.out
    assert "not computed (LPIPS)" in done.err
    again = json.loads(cmbench(*words, *SMALL, "--out", out, "--json").out)
    assert Editing.from_json(again) == records.read(out, "digits")


def test_figures_are_made_from_the_results_alone_and_byte_for_byte(out: Path) -> None:
    def drawn() -> dict[str, bytes]:
        code = (
            "import sys\nfrom cmbench.cli import main\n"
            f"try: main(['figure', 'editing', '--out', {str(out)!r}])\n"
            "except SystemExit as e: assert not e.code\nassert 'torch' not in sys.modules"
        )
        made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        return {Path(line).name: Path(line).read_bytes() for line in made.stdout.split()}

    first = drawn()
    assert {"editing-digits.png", "editing-digits.pdf", "editing-nfe-digits.png"} <= set(first)
    assert drawn() == first


def test_figures_without_results_say_what_to_do(cmbench: Commands, tmp_path: Path) -> None:
    assert "cmbench edit measure" in cmbench("figure", "editing", "--out", tmp_path).error
    assert "--dataset mnist" in cmbench("figure", "editing", "-d", "mnist", "--out", tmp_path).error
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "editing-digits.json").write_text("{}")
    with pytest.raises(WorkError, match="no readable results of editing"):
        records.read(tmp_path, "digits")


def test_a_method_without_a_consistency_function_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'edm' has none"):
        measured(tmp_path, chosen=[methods.get("edm")])
