"""Published figures, read from the CSV files that ship with the package; their cells stay text."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from cmbench.errors import WorkError, unknown

LATER = "Later methods"
"""The group of the rows that :func:`modern` gives."""

BLOCKS = {
    "imagenet64": "ImageNet 64 × 64",
    "lsun-bedroom": "LSUN Bedroom 256 × 256",
    "lsun-cat": "LSUN Cat 256 × 256",
}
"""Data set -> the block of the paper's Table 2 that holds it. Table 1 holds ``cifar10``."""

_FILES = {1: "table1_cifar10.csv", 2: "table2_imagenet64_lsun256.csv"}
_METRICS = ("fid", "is", "precision", "recall")


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table.

    ``texts`` maps a metric (``fid``, ``is``, ``precision``, ``recall``) to the printed cell, digits kept
    (``13.0``); cells that the paper leaves empty are empty texts. ``mark`` is ``synthetic-data`` (the method
    builds a synthetic data set to distill from), ``distillation`` or empty. ``source`` cites the table.
    """

    dataset: str
    group: str
    method: str
    reference: str
    mark: str
    nfe: int
    texts: Mapping[str, str] = field(hash=False)
    source: str
    note: str = ""

    @property
    def later(self) -> bool:
        """Whether it is one of :func:`modern`'s, which the paper does not have."""
        return self.group.startswith(LATER)

    def value(self, metric: str) -> float | None:
        """The printed cell as a number, None where the paper prints none."""
        text = self.texts.get(metric, "")
        return float(text) if text else None


def title(dataset: str) -> str:
    """A data set's name as people write it; a name that is not known here, as it is."""
    return {"cifar10": "CIFAR-10", **BLOCKS, "digits": "Digits 8 × 8", "mnist": "MNIST"}.get(dataset, dataset)


@cache
def _read(name: str) -> tuple[dict[str, str], ...]:
    try:
        text = (files("cmbench_published") / name).read_text(encoding="utf-8")
    except (ModuleNotFoundError, OSError) as error:
        raise WorkError(f"published figures {name} are not installed: reinstall cmbench ({error})") from error
    return tuple(csv.DictReader(text.splitlines()))


def _texts(row: Mapping[str, str]) -> dict[str, str]:
    return {metric: row[metric] for metric in _METRICS if metric in row}


def load(paper: int) -> list[PublishedRow]:
    """All rows of Table 1 (CIFAR-10) or Table 2 (ImageNet 64, LSUN 256) of Song et al. (2023), in its order.

    Raises:
        UsageError: the paper's tables are 1 and 2.
        WorkError: the installation lacks the file.
    """
    if paper not in _FILES:
        raise unknown("table of the paper", str(paper), [str(number) for number in _FILES])
    datasets = {block: dataset for dataset, block in BLOCKS.items()}
    return [
        PublishedRow(
            dataset=datasets[row["group"]] if paper == 2 else "cifar10",
            group=row["group"],
            method=row["method"],
            reference=row["reference"],
            mark=row["mark"],
            nfe=int(row["nfe"]),
            texts=_texts(row),
            source=f"Song et al. (2023), Table {paper}",
        )
        for row in _read(_FILES[paper])
    ]


def for_dataset(name: str) -> list[PublishedRow]:
    """The paper's rows of one data set, in its order; an empty list for a data set that it does not have."""
    return [row for paper in _FILES for row in load(paper) if row.dataset == name]


def modern(name: str) -> list[PublishedRow]:
    """Methods later than the paper, as their authors published them, in the group ``Later methods``.

    They are never part of the paper's own tables.
    """
    return [
        PublishedRow(
            dataset=name,
            group=LATER,
            method=row["method"],
            reference=f"{row['year']}, arXiv:{row['arxiv']}",
            mark="",
            nfe=int(row["nfe"]),
            texts=_texts(row),
            source="their own papers",
            note=row["note"],
        )
        for row in _read("modern.csv")
        if row["dataset"] == name
    ]
