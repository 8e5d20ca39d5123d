"""Quality against cost."""

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from report_factory import record

from cmbench.errors import UsageError
from cmbench.records import Record
from cmbench.report.pareto import Place, front, pareto


def place(cost: float, quality: float) -> Place:
    return Place(cost, quality, "group", "label", 1)


def test_the_front_is_what_none_beats() -> None:
    places = [place(*one) for one in [(1, 5), (1, 4), (2, 4), (3, 2), (4, 3), (9, 1), (9, 1.5)]]
    assert [(one.cost, one.quality) for one in front(places)] == [(1, 4), (3, 2), (9, 1)]
    for one in places:  # anything off the front is beaten by something on it
        assert one in front(places) or any(
            best.cost <= one.cost and best.quality <= one.quality for best in front(places)
        )


def costing(made: Record, seconds: float | None, training: float | None = None) -> Record:
    cost = {"images_per_second": seconds and 1 / seconds, "training_seconds": training}
    return replace(made, cost=cost, environment={"device": "an H100"})


def test_costs_are_means_over_seeds_and_the_front_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("cmbench.report.style.save", lambda figure, stem: drawn.append(figure) or [])
    records = [costing(record("cd", 1, seed, {"fid": 4.0}), 0.001 + 0.002 * seed) for seed in (0, 1)]
    records += [costing(record("pd", 1, metrics={"fid": 6.0}), 0.004)]
    records += [costing(record("edm", 18, metrics={"fid": 2.0}, counted=35), 0.1)]
    pareto(records, "cifar10", tmp_path)
    evaluations, seconds = drawn[0].axes  # no record says how long training took
    named = [text.get_text() for text in seconds.texts]
    assert named == ["CD, NFE 1", "EDM, NFE 35"]
    (line,) = [line for line in seconds.lines if len(line.get_xdata()) > 1 and line.get_zorder() == 2.5]
    assert line.get_xydata().ravel().tolist() == pytest.approx([2.0, 4.0, 100.0, 2.0])
    assert evaluations.get_xscale() == "log"
    assert any("an H100" in text.get_text() for text in drawn[0].texts)
    with pytest.raises(UsageError, match="no FID"):
        pareto(records, "digits", tmp_path)
