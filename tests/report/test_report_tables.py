import random
import subprocess
import sys
from statistics import mean, stdev

import pytest
from report_factory import record

from cmbench.errors import UsageError
from cmbench.records import Metric
from cmbench.report import published, tables
from cmbench.report.layout import Row, Table
from cmbench.report.order import ranking

FD = {"fid": "FD (digits-cnn)", "is": "IS (digits-cnn)"}


def measured(table: Table) -> list[Row]:
    return [row for _, row in table.rows() if row.source == "measured"]


def bold(table: Table) -> set[tuple[str, str, str, str]]:
    return {
        (group, row.method.text, row.nfe.text, column.metric)
        for group, row in table.rows()
        for column, cell in zip(table.columns, row.cells, strict=True)
        if cell.bold
    }


def test_bold_in_the_papers_table_1() -> None:
    assert bold(tables.build_published(1)) == {
        ("Diffusion + Samplers", "3-DEIS", "10", "fid"),
        ("Diffusion + Distillation", "CD", "2", "fid"),
        ("Diffusion + Distillation", "CD", "2", "is"),
        ("Direct Generation", "StyleGAN-XL", "1", "fid"),
        ("Direct Generation", "Score SDE", "2000", "is"),
    }


def test_bold_in_a_block_of_table_2_counts_ties() -> None:
    block = "LSUN Bedroom 256 × 256"
    assert {entry for entry in bold(tables.build_published(2)) if entry[0] == block} == {
        (block, "ADM", "1000", "fid"),
        (block, "CD", "2", "precision"),
        (block, "CT", "2", "precision"),  # both print 0.68
        (block, "ADM", "1000", "recall"),
    }


def test_bold_compares_like_with_like() -> None:
    # A measured figure below every published one leaves the published bold where it is, and a lone figure
    # under its own protocol or sample count has nothing to be better than.
    records = [
        record("cd", 1, metrics={"fid": 0.5}),
        record("pd", 1, metrics={"fid": 0.7}),
        record("cd", 2, metrics={"fid": 0.1}, samples=100),
    ]
    table = tables.build(records, dataset="cifar10")
    best = [(row.source, row.method.text, row.nfe.text) for _, row in table.rows() if row.cells[0].bold]
    assert [entry for entry in best if entry[0] == "measured"] == [("measured", "CD", "1")]
    assert ("published", "CD", "2") in best


def test_mean_and_deviation_over_seeds() -> None:
    figures = [3.41, 3.58, 3.74]
    records = [record("cd", 1, seed, {"fid": fid}) for seed, fid in enumerate(figures)]
    (row,) = measured(tables.build(records, dataset="cifar10", published=()))
    cell = row.cells[0]
    assert cell.value == pytest.approx(mean(figures)) and cell.std == pytest.approx(stdev(figures))
    assert cell.text == "3.58 ± 0.17"
    assert cell.n == 3 and row.origin == "measured, n=3"
    (row,) = measured(tables.build(records[:1], dataset="cifar10", published=()))
    assert (row.cells[0].text, row.cells[0].std, row.origin) == ("3.41", None, "measured")


def test_unlike_runs_are_never_averaged_and_say_what_differs() -> None:
    records = [
        record("cd", 1, 0, {"fid": 3.0}, recipe={"steps": 400}),
        record("cd", 1, 1, {"fid": 3.2}, recipe={"steps": 400}),
        record("cd", 1, 0, {"fid": 4.0}, recipe={"steps": 800}),
    ]
    table = tables.build(records, dataset="cifar10", published=())
    assert sorted((row.cells[0].text, row.method.notes) for row in measured(table)) == [
        ("3.10 ± 0.14", ("steps 400",)),
        ("4.00", ("steps 800",)),
    ]


def test_mixed_protocols_and_sample_counts_are_marked() -> None:
    alike = [record("cd", 1), record("pd", 1)]
    assert not tables.build(alike, dataset="cifar10").letters
    assert any("protocol paper" in note.text for note in tables.build(alike, dataset="cifar10").footnotes)
    mixed = [*alike, record("ct", 1, samples=5_000), record("edm", 1, protocol="quick")]
    table = tables.build(mixed, dataset="cifar10")
    notes = {row.method.text: row.method.notes[0] for row in measured(table)}
    assert notes["CD"] == notes["PD"] != notes["CT"] != notes["EDM"]
    assert "5,000 samples" in notes["CT"] and "protocol quick" in notes["EDM"]
    assert all(not row.method.notes for _, row in table.rows() if row.source == "published")


def test_other_features_have_their_own_columns() -> None:
    table = tables.build([record("cd", 1, titles=FD, protocol="digits")], dataset="cifar10")
    assert [column.header for column in table.columns] == [
        "FD (digits-cnn) ↓",
        "IS (digits-cnn) ↑",
        "FID ↓",
        "IS ↑",
    ]
    for _, row in table.rows():
        filled = [bool(cell.text) for cell in row.cells]
        assert filled[:2] == [row.source == "measured"] * 2
        assert not (row.source == "measured" and any(filled[2:]))
    same = tables.build([record("cd", 1)], dataset="cifar10")
    assert [column.header for column in same.columns] == ["FID ↓", "IS ↑"]


def test_missing_metrics_say_why() -> None:
    records = [
        record("cd", 1, 0, {"fid": 3.0, "recall": Metric.missing("no reference images")}),
        record(
            "cd", 1, 1, {"fid": Metric.missing("diverged"), "recall": Metric.missing("no reference images")}
        ),
    ]
    table = tables.build(records, dataset="cifar10", published=(), columns=["fid", "recall"])
    fid, recall = measured(table)[0].cells
    assert recall.text == "–" and recall.value is None
    assert fid.text == "3.00" and fid.n == 1
    assert [note.text for note in table.footnotes if note.mark] == [
        "over 1 of 2 seeds; not computed for the others: diverged",
        "not computed: no reference images",
    ]


def test_counted_evaluations_win_over_those_asked_for() -> None:
    (row,) = measured(tables.build([record("edm", 18, counted=35)], dataset="cifar10", published=()))
    assert row.nfe.text == "35" and "18 asked for" in row.nfe.notes[0]
    (row,) = measured(tables.build([record("edm", 35)], dataset="cifar10", published=()))
    assert row.nfe.text == "35" and not row.nfe.notes


def test_published_order_is_reproduced_from_any_shuffle() -> None:
    for name in ("cifar10", "imagenet64", "lsun-bedroom", "lsun-cat"):
        rows = published.for_dataset(name)
        key = ranking(rows)
        shuffled = random.Random(0).sample(rows, len(rows))
        assert sorted(shuffled, key=lambda row: key(row.group, row.method, row.nfe)) == rows


def test_measured_rows_stand_where_the_paper_would_put_them() -> None:
    methods = [("ct", 1), ("new", 1), ("cd", 4), ("pd", 4), ("cd", 1), ("pd", 1), ("ddim", 5), ("ddim", 10)]
    table = tables.build([record(method, nfe) for method, nfe in methods], dataset="digits")
    assert not table.groups  # the records are of another data set
    table = tables.build([record(*method, dataset="digits") for method in methods], dataset="digits")
    assert [(row.method.text, row.nfe.text) for row in measured(table)] == [
        ("DDIM", "10"),
        ("DDIM", "5"),
        ("PD", "1"),
        ("CD", "1"),
        ("PD", "4"),
        ("CD", "4"),
        ("CT", "1"),
        ("NEW", "1"),
    ]
    beside = tables.build([record("cd", 1), record("cd", 4)], dataset="cifar10")
    rows = [(row.method.text, row.nfe.text, row.source) for _, row in beside.rows()]
    place = rows.index(("CD", "1", "measured"))
    assert rows[place - 1] == ("CD", "1", "published") and rows[place + 1] == ("PD", "2", "published")


def test_blocks_of_table_2_take_measured_rows_with_the_dagger() -> None:
    records = [record(method, 1, dataset="imagenet64") for method in ("cd", "ct")]
    table = tables.build(records, dataset="imagenet64")
    assert [group.title for group in table.groups] == ["ImageNet 64 × 64"]
    assert {row.method.text: row.mark for row in measured(table)} == {"CD": "distillation", "CT": ""}
    assert ("†", "distillation technique") in [(note.mark, note.text) for note in table.footnotes]


def test_columns_are_chosen_and_checked() -> None:
    table = tables.build([record(metrics={"fid": 3.0, "kid": 0.00123})], dataset="cifar10", columns=["kid"])
    assert [column.key for column in table.columns] == ["kid"]
    assert measured(table)[0].cells[0].text == "0.00123"
    with pytest.raises(UsageError, match="did you mean 'precision'"):
        tables.build([], dataset="cifar10", columns=["precison"])


def test_one_table_a_data_set() -> None:
    records = [record(dataset=name) for name in ("digits", "lsun-cat", "cifar10")]
    assert [table.title for table in tables.build_all(records)] == [
        "CIFAR-10",
        "LSUN Cat 256 × 256",
        "Digits 8 × 8",
    ]
    assert tables.build_all([]) == []


def test_tables_load_no_heavy_module() -> None:
    program = (
        "import sys; from cmbench.report import figures, grid, render, tables\n"
        "render.render(tables.build_published(1), 'csv')\n"
        "print([name for name in ('torch', 'pandas', 'matplotlib', 'rich', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
