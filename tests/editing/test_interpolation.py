"""Strips between samples: what they are, that they are kept, and the figure made from what is kept."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import Commands
from matplotlib.figure import Figure
from PIL import Image
from tiny_runs import SETTINGS, SMALL

from cmbench import session
from cmbench.editing import interpolation, strips
from cmbench.editing.strips import Strip
from cmbench.editing.tasks import to_pixels
from cmbench.errors import UsageError, WorkError
from cmbench.report import interpolation_figure
from cmbench.report.regenerate import regenerate


@pytest.fixture
def cmbench(capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(capsys)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small CD and its teacher."""
    folder = tmp_path_factory.mktemp("strips")
    shop = session.open_workshop(options(folder)("digits"))
    from cmbench import methods

    shop.ensure(shop.need(methods.get("cd"), 1, 0))
    return folder


def options(out: Path) -> Callable[[str], session.Options]:
    return lambda name: session.Options(name, settings=SETTINGS, device="cpu", out=out, download=False)


def opened(out: Path, method: str, nfe: int, given: tuple[Path, ...] = ()) -> interpolation.Generator:
    return interpolation.open_generator(method, None, nfe, 0, options(out), given)


@pytest.mark.parametrize(("method", "nfe"), [("cd", 1), ("edm", 5), ("ddim", 3)])
def test_the_ends_are_the_samples_and_the_middle_is_neither(out: Path, method: str, nfe: int) -> None:
    generator = opened(out, method, nfe)
    strip, made = interpolation.interpolate(generator, (3, 8), 5)
    ends = to_pixels(generator.source.images([3, 8]))
    assert made.shape == (5, 1, 8, 8) and strip.evaluations == nfe
    assert np.abs(made[[0, -1]].astype(int) - ends).max() <= 1
    assert (made[2] != made[0]).any() and (made[2] != made[-1]).any()


def test_a_strip_the_other_way_and_a_finer_one_hold_the_same_images(out: Path) -> None:
    generator = opened(out, "cd", 1)
    _, made = interpolation.interpolate(generator, (0, 1), 5)
    _, back = interpolation.interpolate(generator, (1, 0), 5)
    _, fine = interpolation.interpolate(generator, (0, 1), 9)
    assert np.abs(made.astype(int) - back[::-1]).max() <= 1
    assert np.abs(made.astype(int) - fine[::2]).max() <= 1


def test_what_a_stochastic_sampler_draws_is_one_for_the_strip(out: Path) -> None:
    generator = opened(out, "cd", 3)
    strip, made = interpolation.interpolate(generator, (2, 2), 4)  # from a sample to itself
    assert strip.evaluations == 3 and np.abs(made.astype(int) - made[:1]).max() <= 1
    assert np.abs(made[0].astype(int) - to_pixels(generator.source.images([2]))[0]).max() <= 1


def test_a_checkpoint_serves_as_the_one_that_is_found(out: Path) -> None:
    (path,) = (out / "checkpoints").glob("digits-cd-*")
    found, given = opened(out, "cd", 1), opened(Path("nowhere"), "cd", 1, (path,))
    assert found.identity["checkpoint"] == given.identity["checkpoint"]
    one, other = (interpolation.interpolate(each, (0, 1), 3)[1] for each in (found, given))
    assert (one == other).all()
    with pytest.raises(UsageError, match="edm at NFE 2"):
        opened(out, "edm", 2)


# --- kept, and drawn ------------------------------------------------------------------------------


def made_up(seed: int = 0, nfe: int = 1, label: str = "CD", **identity: object) -> Strip:
    return Strip(
        label.lower(), label, "Diffusion + Distillation", "digits", nfe, float(nfe), seed, (0, 1), 4,
        {"nfe": nfe, "seed": seed, "method": label, **identity},
    )  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read(tmp_path: Path, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, channels, 6, 6), np.uint8)
    picture = strips.write(tmp_path, made_up(), images)
    (strip,) = strips.read_all(tmp_path)
    assert strip == made_up() and Image.open(picture).size == (24, 6)
    again = strips.read_images(tmp_path, strip)
    assert np.array_equal(again, images[:, 0] if channels == 1 else images.transpose(0, 2, 3, 1))
    Image.new("L", (23, 6)).save(picture)
    with pytest.raises(WorkError, match="not a readable picture of 4 images"):
        strips.read_images(tmp_path, strip)
    picture.with_suffix(".json").write_text("[]")
    with pytest.raises(WorkError, match="not a readable interpolation strip"):
        strips.read_all(tmp_path)


def test_rows_of_a_block_share_their_samples_and_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("cmbench.report.style.save", lambda figure, stem: drawn.append(figure) or [])
    l1 = {"recipe": {"metric": "l1"}}
    own = [made_up(), made_up(**l1), made_up(nfe=2, **l1), made_up(label="PD"), made_up(seed=1, label="PD")]
    for place, strip in enumerate(own):
        strips.write(tmp_path, strip, np.full((4, 1, 6, 6), place, np.uint8))
    interpolation_figure.draw(strips.read_all(tmp_path), "digits", tmp_path)
    first, second = drawn[0].axes
    texts = [[text.get_text() for text in ax.texts] for ax in (first, second)]
    assert texts[0][0] == "seed 0, from sample 0 to sample 1" and texts[1][0].startswith("seed 1")
    assert texts[0][1:5] == ["0", "0.33", "0.67", "1"]
    rows = ["CD, NFE 1\nmetric by default", "CD, NFE 1\nmetric l1", "CD, NFE 2\nmetric l1", "PD, NFE 1"]
    assert sorted(texts[0][5:]) == rows and texts[1][5:] == ["PD, NFE 1"]
    values = {int(np.asarray(image.get_array()).flat[0]) for image in first.images}
    assert values == {0, 1, 2, 3} and len(first.images) == 16
    with pytest.raises(UsageError, match="cmbench edit interpolate --dataset mnist"):
        interpolation_figure.draw(own, "mnist", tmp_path)


def test_the_commands(cmbench: Commands, out: Path, tmp_path: Path) -> None:
    made = cmbench("edit", "interpolate", "--between", 0, 1, 2, 3, "--steps", 4, *SMALL, "--out", out)
    assert made.status == 0, made.err
    assert [Path(line).parent for line in made.out.split()] == [out / "interpolation"] * 2
    to = tmp_path / "strip.png"
    made = cmbench(
        "edit", "interpolate", "--method", "edm", "--nfe", 3, "--steps", 4, *SMALL, "--out", out, "--to", to
    )
    assert made.out.split() == [str(to)] and Image.open(to).size == (32, 8)
    kept = strips.read_all(out)
    assert [(strip.method, strip.between) for strip in kept] == [
        ("cd", (0, 1)),
        ("cd", (2, 3)),
        ("edm", (0, 1)),
    ]

    def drawn() -> dict[str, bytes]:
        code = (
            "import sys\nfrom cmbench.cli import main\n"
            f"try: main(['figure', 'interpolation', '--out', {str(out)!r}])\n"
            "except SystemExit as e: assert not e.code\nassert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return {Path(line).name: Path(line).read_bytes() for line in done.stdout.split()}

    first = drawn()
    assert set(first) == {f"interpolation-digits.{end}" for end in ("png", "pdf", "svg")} and drawn() == first
    paths, _ = regenerate(out)
    assert {path.name for path in paths} >= set(first) and drawn() == first
    few = cmbench("figure", "interpolation", "-m", "edm", "--between", 0, 1, "--name", "few", "--out", out)
    assert "few-digits.png" in few.out
    assert (
        "no such interpolation strips" in cmbench("figure", "interpolation", "--nfe", 7, "--out", out).error
    )
    assert "did you mean 'edm'" in cmbench("figure", "interpolation", "-m", "edn", "--out", out).error
    assert "cmbench edit interpolate" in cmbench("figure", "interpolation", "--out", tmp_path).error
