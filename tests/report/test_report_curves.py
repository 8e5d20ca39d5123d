"""Figures of experiments."""

from itertools import pairwise
from pathlib import Path

import pytest
from experiment_factory import experiment, without_figures
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmbench.errors import UsageError
from cmbench.experiments import manifest
from cmbench.experiments.manifest import Arm
from cmbench.report import curves, panels


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, in place of files."""
    made: list[Figure] = []
    monkeypatch.setattr("cmbench.report.style.save", lambda figure, stem: made.append(figure) or [])
    return made


def lines(ax: Axes) -> list[list[tuple[float, float]]]:
    of_figures = [line for line in ax.lines if line.get_transform() == ax.transData]
    return [[(float(x), float(y)) for x, y in line.get_xydata()] for line in of_figures]


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_lines_are_means_over_seeds_and_bands_reach_over_all(tmp_path: Path, drawn: list[Figure]) -> None:
    made = experiment(tmp_path, "fig3a")
    curves.draw([made], tmp_path, "fig3a")
    (ax,) = drawn[0].axes
    points = [point for point in made.arms[1].points if point.step == 1500]
    values = [float(point.read(tmp_path).metrics["fid"].value or 0) for point in points]
    assert len(values) == 3
    assert lines(ax)[1][2] == (1.5, pytest.approx(sum(values) / 3))
    band = ax.collections[1].get_paths()[0].vertices
    at = [float(y) for x, y in band if x == 1.5]
    assert (min(at), max(at)) == (pytest.approx(min(values)), pytest.approx(max(values)))
    assert ax.get_xlabel() == "training iterations (thousands)" and ax.get_yscale() == "log"
    assert ax.get_ylabel() == "FD-digits at NFE 1 ↓" and "3 seeds" in ax.get_title(loc="left")
    assert texts(ax) == ["ℓ1", "ℓ2", "features (LPIPS formula)"]


def test_figure_4_is_over_evaluations(tmp_path: Path, drawn: list[Figure]) -> None:
    curves.draw([experiment(tmp_path, "fig4", seeds=1)], tmp_path, "fig4")
    (ax,) = drawn[0].axes
    assert [x for x, _ in lines(ax)[0]] == [1, 2, 4, 8]
    assert (ax.get_xscale(), ax.get_ylabel()) == ("log", "FD-digits ↓")
    assert "one seed" in ax.get_title(loc="left")


def test_panels_of_figure_3_and_what_is_missing(tmp_path: Path, drawn: list[Figure]) -> None:
    for name in ("fig3a", "fig3c"):
        experiment(tmp_path, name, seeds=1)
    found, missing = curves.measured(tmp_path, "fig3", "digits")
    assert [made.name for made in found] == ["fig3a", "fig3c"] and missing == ["fig3b", "fig3d"]
    failed = without_figures(found[0], 1, "diverged at step 400")
    curves.draw([failed, found[1]], tmp_path, "fig3")
    first, second = drawn[0].axes
    assert first.get_title(loc="left").startswith("(a) Metric") and second.get_title(loc="left").startswith(
        "(c) N"
    )
    assert len(lines(first)) == 2 and "ℓ2: diverged at step 400" in texts(first)


def test_nothing_measured_says_what_measures_it(tmp_path: Path) -> None:
    made = experiment(tmp_path, "fig3d", seeds=1)
    for arm in range(len(made.arms)):
        made = without_figures(made, arm, "not begun")
    with pytest.raises(UsageError, match="cmbench experiment fig3d --dataset digits"):
        curves.draw([made], tmp_path, "fig3d")
    assert curves.measured(tmp_path, "fig3d", "mnist") == ([], ["fig3d"])


def test_looks_follow_what_the_arms_vary() -> None:
    def looks(*settings: dict) -> list[dict]:
        return curves.arm_looks([Arm(str(n), str(n), "cd", own) for n, own in enumerate(settings)])

    numbers = looks(*({"points": n} for n in (80, 9, 18, 36, 12)))
    assert len({look["color"] for look in numbers}) == len({look["marker"] for look in numbers}) == 5
    assert numbers[1] == curves.style.shades(5)[0] and numbers[0] == curves.style.shades(5)[4]
    both = looks(*({"solver": name, "cd": {"points": n}} for name in ("euler", "heun") for n in (9, 18)))
    assert both[0]["color"] == both[1]["color"] != both[2]["color"] == both[3]["color"]
    assert both[0]["marker"] == both[2]["marker"] != both[1]["marker"]
    assert both[0]["linestyle"] != both[2]["linestyle"]
    others = looks({}, {"a": 1}, {"b": "c"})
    assert len({look["color"] for look in others}) == 3


def test_names_keep_their_distance_and_their_order() -> None:
    assert panels.spread([0.2, 0.8], 0.1) == [0.2, 0.8]
    assert panels.spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    wanted = [0.9, 0.02, 0.03, 0.5, 0.97, 0.99]
    placed = panels.spread(wanted, 0.08)
    ordered = sorted(range(6), key=lambda place: wanted[place])
    gaps = [placed[b] - placed[a] for a, b in pairwise(ordered)]
    assert min(gaps) >= 0.08 - 1e-9 and placed[3] == pytest.approx(0.5)
    assert min(placed) >= 0 and max(placed) <= 1 + 1e-9


def test_milestones_stay_out_of_the_tables(tmp_path: Path) -> None:
    from cmbench import records

    experiment(tmp_path, "fig3a", seeds=1)
    assert records.read(tmp_path) == [] and len(manifest.read_all(tmp_path)) == 1
