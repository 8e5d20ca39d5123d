"""Which rows are one curve over NFE, and how the figures and the page name it."""

from pathlib import Path

import pytest
from report_factory import record

from cmbench.records import Record
from cmbench.report import figures
from cmbench.report.aggregate import Curve, curves_of, over_seeds
from cmbench.report.page_data import dataset_data


def names(*records: Record) -> list[str]:
    return [curve.name for curve in curves_of(over_seeds(records))]


def test_a_method_is_one_curve_over_nfe_and_seeds() -> None:
    assert names(record("cd", 1), record("cd", 1, 1), record("cd", 2), record("pd", 1)) == ["CD", "CD", "PD"]


def test_a_method_that_stands_twice_at_one_nfe_is_told_apart_at_every_nfe() -> None:
    l1, l2 = {"recipe": {"metric": "l1"}}, {"recipe": {"metric": "l2"}}
    found = names(record("cd", 1, **l1), record("cd", 1, **l2), record("cd", 2, **l1), record("pd", 1))
    assert found == ["CD, metric l1", "CD, metric l2", "CD, metric l1", "PD"]


def test_settings_that_differ_between_nfe_alone_or_between_protocols_tell_nothing() -> None:
    assert names(record("cd", 1, recipe={"points": 9}), record("cd", 2, recipe={"points": 18})) == ["CD"] * 2
    assert (
        names(record("cd", 1), record("cd", 1, protocol="digits"), record("cd", 1, samples=5)) == ["CD"] * 3
    )


def test_guidance_and_tuning_are_curves_of_their_own_before_what_differs_otherwise() -> None:
    guided, tuned = {"guidance": {"weight": 2.0}}, {"tuned": {"metric": "fid"}}
    found = names(record("cd", 1), record("cd", 2, **guided), record("cd", 1, **tuned))
    assert found == ["CD", "CD, guidance w = 2", "CD, re-noising levels tuned by FID"]
    twice = names(record("cd", 1, **guided, step=100), record("cd", 1, **guided, step=200))
    assert twice == ["CD, guidance w = 2, step 100", "CD, guidance w = 2, step 200"]


def test_methods_of_one_label_in_two_groups_are_two_curves() -> None:
    (curve,) = curves_of(over_seeds([record("cd", 1)]))
    assert curve == Curve("Diffusion + Distillation", "CD") and curve != Curve("Direct Generation", "CD")


def test_the_figure_and_the_page_give_a_curve_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr("cmbench.report.style.save", lambda figure, stem: drawn.append(figure) or [])
    made = [record("cd", nfe, recipe={"metric": metric}) for nfe in (1, 2) for metric in ("l1", "l2")]
    made += [record("ddim", 10, guidance={"weight": 2.0})]
    figures.nfe(made, "cifar10", tmp_path)
    written = {text.get_text() for ax in drawn[0].axes for text in ax.texts}
    page = {row["line"] for row in dataset_data("cifar10", over_seeds(made))["rows"]}
    assert page == {"CD, metric l1", "CD, metric l2", "DDIM, guidance w = 2"} and page <= written
