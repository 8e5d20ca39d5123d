import csv
from importlib.resources import files
from io import StringIO

import pytest

from cmbench.errors import UsageError
from cmbench.report import published, tables
from cmbench.report.render import render

FILES = {1: "table1_cifar10.csv", 2: "table2_imagenet64_lsun256.csv"}


def shipped(paper: int) -> list[dict[str, str]]:
    text = (files("cmbench_published") / FILES[paper]).read_text(encoding="utf-8")
    return list(csv.DictReader(StringIO(text)))


@pytest.mark.parametrize(
    ("paper", "header", "count"),
    [
        (1, "group,method,reference,nfe,fid,is", 36),
        (2, "group,method,reference,nfe,fid,precision,recall", 34),
    ],
)
def test_csv_is_the_paper_cell_by_cell(paper: int, header: str, count: int) -> None:
    text = render(tables.build_published(paper), "csv")
    assert isinstance(text, str)
    assert text.splitlines()[0] == header
    expected = [{name: row[name] for name in header.split(",")} for row in shipped(paper)]
    assert list(csv.DictReader(StringIO(text))) == expected
    assert len(expected) == count


def test_trailing_zeros_stay() -> None:
    text = render([tables.build_published(1), tables.build_published(2)], "csv")
    assert isinstance(text, str)
    assert ",8.70,8.49," in text and ",1,13.0,,0.71,0.47" in text and ",1,8.0,,," in text


def test_load_keeps_every_cell_and_mark() -> None:
    for paper in FILES:
        for row, cells in zip(published.load(paper), shipped(paper), strict=True):
            assert (row.group, row.method, row.reference, row.mark) == tuple(
                cells[name] for name in ("group", "method", "reference", "mark")
            )
            assert str(row.nfe) == cells["nfe"]
            assert dict(row.texts) == {name: cells[name] for name in row.texts}


def test_data_sets_split_the_tables() -> None:
    names = ["imagenet64", "lsun-bedroom", "lsun-cat"]
    assert published.for_dataset("cifar10") == published.load(1)
    assert [row for name in names for row in published.for_dataset(name)] == published.load(2)
    assert published.for_dataset("digits") == []


def test_later_methods_are_kept_apart() -> None:
    later = published.modern("cifar10")
    assert {row.group for row in later} == {published.LATER}
    assert not {row.method for row in later} & {row.method for row in published.load(1)}
    assert "sCT" not in render_text("cifar10", None)
    shown = render_text("cifar10", [*published.for_dataset("cifar10"), *later])
    assert shown.index("Direct Generation") < shown.index(published.LATER) < shown.index("| sCT")


def render_text(dataset: str, rows: list[published.PublishedRow] | None) -> str:
    text = render(tables.build([], dataset=dataset, published=rows), "md")
    assert isinstance(text, str)
    return text


def test_there_is_no_third_table() -> None:
    with pytest.raises(UsageError, match="3"):
        published.load(3)
