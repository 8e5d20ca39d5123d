import csv
from io import StringIO

import pytest
from report_factory import record

from cmbench.errors import UsageError
from cmbench.records import Record
from cmbench.report.choosing import choose, hint
from cmbench.report.compare import compare
from cmbench.report.layout import Table
from cmbench.report.render import render

FD = {"fid": "FD-digits", "is": "IS-digits"}


def cells(table: Table) -> dict[tuple[str, str], dict[str, str]]:
    keys = [column.key for column in table.columns]
    return {
        (row.method.text, row.nfe.text): dict(zip(keys, (cell.text for cell in row.cells), strict=True))
        for _, row in table.rows()
    }


def test_inception_figures_are_subtracted() -> None:
    records = [record("cd", 1, seed, {"fid": 3.5 + seed / 10, "is": 9.4}) for seed in (0, 1, 2)]
    records += [
        record("cd", 4),
        record("ct", 2, metrics={"fid": 5.0}),
    ]  # the paper has no CD of 4 evaluations
    fid, inception_score = compare(records, "cifar10")
    assert [column.header for column in fid.columns] == ["FID ↓", "published", "difference"]
    assert fid.title == "CIFAR-10: FID against the published FID"
    assert cells(fid) == {
        ("CD", "1"): {"fid": "3.60 ± 0.10", "fid_published": "3.55", "fid_difference": "+0.05"},
        ("CT", "2"): {"fid": "5.00", "fid_published": "5.83", "fid_difference": "−0.83"},
    }
    assert cells(inception_score) == {
        ("CD", "1"): {"is": "9.40 ± 0.00", "is_published": "9.48", "is_difference": "−0.08"}
    }
    assert "difference: measured − published" in fid.remarks


def test_counted_evaluations_find_their_row_and_guided_runs_none() -> None:
    own = {"fid": 2.0}
    records = [record("edm", 18, metrics=own, counted=35), record("ddim", 10, guidance={"weight": 2.0})]
    (table,) = compare(records, "cifar10")
    assert cells(table)["EDM", "35"]["fid_difference"] == "−0.04"
    assert len(cells(table)) == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"titles": FD, "dataset": "digits", "samples": 5_000}, "FD-digits and the paper's FID"),
        ({"dataset": "mnist"}, "other images (CIFAR-10)"),
        ({"samples": 5_000}, "number of samples, here 5,000"),
    ],
)
def test_other_figures_have_places_instead(options: dict, why: str) -> None:
    measured = {("cd", 1): 0.6, ("cd", 2): 0.5, ("pd", 1): 0.6, ("ct", 1): 9.0}
    records: list[Record] = [record(*run, 0, {"fid": fid}, **options) for run, fid in measured.items()]
    (table,) = compare(records, options.get("dataset", "cifar10"))
    assert not [column for column in table.columns if column.title == "difference"]
    places = {key: (row["fid_place"], row["fid_published_place"]) for key, row in cells(table).items()}
    assert places == {
        ("CD", "2"): ("1", "1"),
        ("CD", "1"): ("2.5", "2"),  # equal figures share their places
        ("PD", "1"): ("2.5", "3"),
        ("CT", "1"): ("4", "4"),
    }
    assert any(why in remark for remark in table.remarks)
    assert any(
        "0.95, 4 rows" in remark for remark in table.remarks
    )  # Spearman of 1, 2.5, 2.5, 4 and 1, 2, 3, 4


def test_protocols_are_tables_of_their_own() -> None:
    records = [record("cd", 1), record("cd", 1, protocol="own", titles=FD)]
    first, second = compare(records, "cifar10", columns=["fid"])
    assert first.columns[2].title == "difference" and second.columns[0].title == "FD-digits"


def test_all_formats_take_it() -> None:
    made = compare([record("cd", 1), record("pd", 2)], "cifar10", columns=["fid"])
    for format in ("md", "html", "json", "latex"):
        assert "published" in str(render(made, format))
    (pd, _) = csv.DictReader(StringIO(str(render(made, "csv"))))
    assert pd["fid"] == "3.5" and float(pd["fid_difference"]) == pytest.approx(3.5 - 3.55)
    assert "fid_difference_std" not in pd and "fid_std" in pd


def test_nothing_to_compare() -> None:
    records = [record("cd", 4)]
    assert compare(records, "cifar10") == [] and compare([], "digits") == []
    assert "none of the measured rows" in hint(records, compare=True)
    with pytest.raises(UsageError, match="kid"):
        compare(records, "cifar10", columns=["kid"])


def test_the_papers_tables_with_measured_rows_in_their_blocks() -> None:
    records = [record("cd", 1, dataset="lsun-cat"), record("ct", 2, dataset="imagenet64"), record("cd", 1)]
    (table,) = choose(records, paper=2, later=True)
    measured = [(group, row.method.text) for group, row in table.rows() if row.source == "measured"]
    assert measured == [("ImageNet 64 × 64", "CT"), ("LSUN Cat 256 × 256", "CD")]
    assert [column.key for column in table.columns] == ["fid", "precision", "recall"]
    assert table.groups[-1].title == "Later methods: ImageNet 64 × 64"
    assert [one.title for one in choose(records, ["digits", "cifar10"], 1)] == ["CIFAR-10"]
    assert len(choose(records)) == 3
    with pytest.raises(UsageError, match="--compare"):
        choose(records, compare=True, later=True)


def test_a_column_of_origins_only_where_they_differ() -> None:
    runs = [record("cd", 1, seed) for seed in (0, 1)]
    (alike,) = choose(runs, ["digits"]) or choose(
        [record("cd", 1, seed, dataset="digits") for seed in (0, 1)]
    )
    assert alike.headers == ["METHOD", "NFE ↓", "FID ↓", "IS ↑"]
    assert any("means over 2 seeds" in remark for remark in alike.remarks)
    (mixed,) = choose(
        [record("cd", 1, 0, dataset="digits"), *(record("pd", 1, s, dataset="digits") for s in (0, 1))]
    )
    assert mixed.headers[-1] == "SEEDS" and [mixed.origin(row) for _, row in mixed.rows()] == ["2", "1"]
    (beside,) = choose(runs)
    assert beside.headers[-1] == "SOURCE"
