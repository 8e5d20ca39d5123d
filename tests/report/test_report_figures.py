import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from PIL import Image
from report_factory import record

from cmbench.errors import UsageError, WorkError
from cmbench.records import Metric
from cmbench.report import figures, style
from cmbench.report.grid import grid, preview_path, read_preview, write_preview

PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from report_factory import record
from cmbench.report import figures, pareto, style
runs = [(method, nfe, seed) for method in ("cd", "pd", "ddim") for nfe in (1, 2) for seed in (0, 1)]
records = [record(*run, {{"fid": 10 / run[1] + run[2] / 7}}) for run in runs]
out = Path(sys.argv[1])
for path in figures.nfe(records, "cifar10", out) + pareto.pareto(records, "cifar10", out):
    print(path.name, __import__("hashlib").sha256(path.read_bytes()).hexdigest())
"""


def lines(ax: Axes) -> list[Line2D]:
    """The lines of figures, without those that lead to their names."""
    return [line for line in ax.lines if line.get_transform() == ax.transData]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, in place of files."""
    made: list[Figure] = []
    monkeypatch.setattr("cmbench.report.style.save", lambda figure, stem: made.append(figure) or [])
    return made


def test_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    program = PROGRAM.format(tests=str(Path(__file__).parent))
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / seed)],
            env=os.environ | {"PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": seed + "000000"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert [line.split()[0] for line in outputs.pop().splitlines()] == [
        *("nfe-cifar10.png", "nfe-cifar10.pdf", "nfe-cifar10.svg"),
        *("pareto-cifar10.png", "pareto-cifar10.pdf", "pareto-cifar10.svg"),
    ]


def test_nfe_draws_means_at_counted_evaluations(tmp_path: Path, drawn: list[Figure]) -> None:
    records = [record("cd", nfe, seed, {"fid": 4 / nfe + seed}) for nfe in (1, 2) for seed in (0, 1)]
    records += [record("edm", 18, metrics={"fid": 2.0}, counted=35)]
    records += [record("pd", 1, metrics={"fid": Metric.missing("diverged")})]
    figures.nfe(records, "cifar10", tmp_path)
    (ax,) = drawn[0].axes
    filled = [line for line in lines(ax) if line.get_markerfacecolor() != "none"]
    assert [[tuple(point) for point in line.get_xydata()] for line in filled] == [
        [(1, 4.5), (2, 2.5)],
        [(35, 2.0)],
    ]
    assert ax.get_xscale() == ax.get_yscale() == "log"
    with pytest.raises(UsageError, match="no FID"):
        figures.nfe(records, "digits", tmp_path)


def test_nfe_separates_protocols_and_shows_the_paper_only_beside_its_own_metric(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    own = {"fid": "FD (digits-cnn)"}
    figures.nfe([record("cd", 1), record("cd", 1, titles=own, protocol="digits")], "cifar10", tmp_path)
    inception, digits = drawn[0].axes
    assert inception.get_ylabel() == "FID ↓" and digits.get_ylabel() == "FD (digits-cnn) ↓"
    hollow = [line for line in lines(inception) if line.get_markerfacecolor() == "none"]
    assert [tuple(point) for point in hollow[0].get_xydata()] == [(1, 3.55), (2, 2.93)]
    assert not [line for line in lines(digits) if line.get_markerfacecolor() == "none"]


def test_more_lines_than_colours_are_a_panel_for_each_group(tmp_path: Path, drawn: list[Figure]) -> None:
    many = [
        replace(record(f"method {n}", 1, metrics={"fid": n + 1.0}), group=f"group {n % 2}") for n in range(8)
    ]
    figures.nfe(many, "cifar10", tmp_path)
    axes = drawn[0].axes
    assert [ax.get_title(loc="left").splitlines()[0] for ax in axes] == ["group 0", "group 1"]
    assert [len(lines(ax)) for ax in axes] == [4, 4]
    assert axes[0].get_ylim() == axes[1].get_ylim()
    assert list(axes[0].get_yticks()) == list(axes[1].get_yticks())
    looks = {(line.get_color(), line.get_marker()) for line in lines(axes[0])}
    assert len(looks) == 4


def test_no_two_of_many_points_look_alike() -> None:
    looks = [style.kind(place) for place in range(49)]
    assert len({(look["color"], look["marker"]) for look in looks}) == 49


def test_a_tall_grid_is_a_block_for_each_group(tmp_path: Path) -> None:
    records = [
        replace(record(f"m{n}", 1, dataset="digits"), group="one" if n < 20 else "two") for n in range(25)
    ]
    write_preview(preview_path(tmp_path, records[0]), np.zeros((8, 8, 8), np.uint8))
    first, second = grid(records, tmp_path).axes
    assert [sum("NFE" in text.get_text() for text in ax.texts) for ax in (first, second)] == [20, 5]
    assert len(first.images) == 4 and not second.images
    assert first.get_position().x1 < second.get_position().x0
    assert first.get_position().y1 == pytest.approx(second.get_position().y1)


def test_preview_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for shape in [(3, 8, 8), (8, 4, 4, 3), (70, 5, 5)]:
        images = rng.integers(0, 256, shape, dtype=np.uint8)
        write_preview(tmp_path / "a.png", images)
        assert np.array_equal(read_preview(tmp_path / "a.png", len(images)), images[:64])
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (8 * 5, 8 * 5) and picture.mode == "L"
        assert np.array_equal(np.asarray(picture)[5:10, 10:15], images[8 + 2])
    with pytest.raises(ValueError, match="square uint8"):
        write_preview(tmp_path / "b.png", np.zeros((2, 8, 4), np.uint8))


def test_damaged_preview(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(WorkError, match=r"a\.png"):
        read_preview(tmp_path / "a.png")
    Image.new("L", (31, 4)).save(tmp_path / "b.png")
    with pytest.raises(WorkError, match="eight square tiles"):
        read_preview(tmp_path / "b.png")


def test_a_column_of_the_grid_is_one_sample_index(tmp_path: Path) -> None:
    records = [record(method, nfe, dataset="digits") for method in ("cd", "ddim") for nfe in (1, 2)]
    for place, own in enumerate(records[:3]):  # the last one has no preview
        images = np.zeros((10, 8, 8), np.uint8) + np.arange(10, dtype=np.uint8)[:, None, None] * 10
        write_preview(preview_path(tmp_path, own), images + np.uint8(place))
    (ax,) = grid(records, tmp_path).axes
    tiles = [image for image in ax.images if isinstance(image, AxesImage)]
    assert len(tiles) == 3 * 8
    for tile in tiles:
        left, right, *_ = tile.get_extent()
        index = int(np.asarray(tile.get_array()).flat[0]) // 10
        assert index < left < right < index + 1
        assert tile.get_interpolation() == "nearest"
    texts = [text.get_text() for text in ax.texts]
    assert [text for text in texts if "NFE" in text] == [
        "DDIM, NFE 2",
        "DDIM, NFE 1",
        "CD, NFE 1",
        "CD, NFE 2",
    ]
    assert texts.count("no preview stored") == 1


def test_samples_figure(tmp_path: Path) -> None:
    own = record("cd", 1, seed=3, dataset="digits")
    write_preview(preview_path(tmp_path / "previews", own), np.zeros((4, 8, 8, 3), np.uint8))
    paths = figures.samples([own, record("cd", 1)], "digits", 3, tmp_path / "previews", tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "figures/samples-digits.png",
        "figures/samples-digits.pdf",
        "figures/samples-digits.svg",
    ]
    with pytest.raises(UsageError, match="seed 4"):
        figures.samples([own], "digits", 4, tmp_path / "previews", tmp_path)
