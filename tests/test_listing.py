"""`cmbench list methods`, its page in docs/, and the words in it."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from commands import Commands

from cmbench import catalogue, methods, registry
from cmbench.catalogue import documented, entry, in_words, settings
from cmbench.methods import DIRECT, Method, Parent
from cmbench.recipes import Common
from cmbench.training.fit import Fit

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"


@pytest.fixture
def cmbench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("COLUMNS", "100")
    return Commands(capsys)


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        (range(1, 2049), "any"),
        (range(3, 2049), "from 3"),
        (range(1, 18), "up to 17"),
        (range(4, 18), "from 4 to 17"),
        (range(1, 2049, 2), "odd"),
        (range(1, 80, 2), "odd up to 79"),
        (range(5, 2049, 2), "odd from 5"),
        (range(2, 2049, 2), "even"),
        (range(4, 41, 2), "even from 4 to 40"),
        (range(3, 2049, 3), "multiples of 3"),
        ([1, 2, 4, 8, 16, 32], "powers of two up to 32"),
        ([2**k for k in range(12)], "powers of two"),
        ([2, 4, 8, 16], "powers of two from 2 to 16"),
        ([1000], "only 1000"),
        ([1], "only 1"),
        ([1, 2], "1, 2"),
        ([1, 2, 4], "1, 2, 4"),
        ([n for n in range(1, 2049) if n != 2], "any but 2"),
        ([1, 3, 4, 7], "1, 3, 4, 7"),
        ([1, 3, 4, 7, 11, 18, 29, 47], "1, 3, 4, ..., 47"),
        ([n for n in range(1, 2049) if n % 3], "1, 2, 4, ..."),
        ([], "none by default"),
    ],
)
def test_numbers_of_evaluations_in_words(allowed, words: str):
    assert in_words(list(allowed)) == words


@pytest.mark.parametrize(
    ("name", "nfe"),
    [("ddim", "any"), ("edm", "odd"), ("pd", "powers of two up to 32"), ("cd", "up to 17")],
)
def test_the_words_are_what_the_method_does(name: str, nfe: str):
    assert entry(methods.get(name)).nfe == nfe


@dataclass(frozen=True)
class Inner:
    """Inside.

    Attributes:
        rate: how fast.
    """

    rate: float = 0.5


@dataclass(frozen=True)
class Base:
    """Inherited from.

    Attributes:
        old: from the base,
            said on two lines: with a colon.
    """

    old: int = 1


@dataclass(frozen=True)
class Recipe(Base):
    """Some settings.

    Attributes:
        a, b: two at once.
        inner: a table.
        fit: optimisation.

    Not one of them: this line.
    """

    a: bool = True
    b: str | None = None
    inner: Inner = field(default_factory=lambda: Inner(rate=0.25))
    taus: tuple[float, ...] = (0.5, 2.0)
    fit: Fit = field(default_factory=lambda: Fit(steps=7))


def test_settings_come_with_their_defaults_and_meanings():
    found = {s.name: (s.default, s.meaning) for s in settings(Recipe(), "x.")}
    assert found["x.a"] == ("true", "two at once.")
    assert found["x.b"] == ("none", "two at once.")
    assert found["x.old"] == ("1", "from the base, said on two lines: with a colon.")
    assert found["x.inner"] == ("", "a table.")
    assert found["x.inner.rate"] == ("0.25", "how fast.")
    assert found["x.taus"] == ("[0.5, 2.0]", "")
    assert found["x.fit.steps"] == ("7", "optimiser steps.")
    assert documented(int) == {}


def method(**changes) -> Method:
    values = {"name": "x", "label": "X", "group": DIRECT, "reference": "Me, 2020", "summary": "does"}
    return Method(recipe=Recipe, sampler=lambda *_: None, **{**values, **changes})


def test_where_the_network_comes_from():
    def train(_job):
        raise AssertionError

    assert entry(method(train=train)).network == "own"
    assert entry(method(parent=lambda *_: Parent("edm"))).network == "edm's"
    assert entry(method(train=train, parent=lambda *_: Parent("edm"))).network == "from edm"
    stages = method(
        train=train,
        variant=lambda nfe, _: str(nfe),
        parent=lambda variant, _: Parent("edm") if variant == "4" else Parent("x", str(2 * int(variant))),
    )
    assert entry(stages).network == "from edm"
    reflow = method(
        train=train, variant=lambda *_: "2", parent=lambda v, _: Parent("x", "1") if v == "2" else None
    )
    assert entry(reflow).network == "own"


@pytest.mark.parametrize("name", registry.names("method"))
def test_every_setting_of_every_method_is_explained(name: str):
    assert [s.name for s in entry(methods.get(name)).settings if not s.meaning] == []


def test_every_shared_setting_is_explained():
    assert [s.name for s in settings(Common()) if not s.meaning] == []


def test_the_list_is_readable_at_100_columns(cmbench: Commands):
    out = cmbench("list", "methods").out
    assert max(map(len, out.splitlines())) <= 100
    for one in catalogue.entries():
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [one.name]]
        assert one.network.split()[0] in line
        assert one.group in out


def test_many_methods_with_long_words_stay_readable(cmbench: Commands, monkeypatch: pytest.MonkeyPatch):
    first = catalogue.entries()[0]
    long = {"nfe": "powers of two from 2 to 128", "reference": "Luhman & Luhman, 2021"}
    many = [
        dataclasses.replace(
            first, name=f"dpm-solver-fast-{n}", trains=True, parent="rectified-flow", pairs=True, **long
        )
        for n in range(40)
    ]
    monkeypatch.setattr(catalogue, "entries", lambda: many)
    out = cmbench("list", "methods").out
    assert max(map(len, out.splitlines())) <= 100
    assert all(f"{one.name} " in out for one in many)
    assert all(word in out for word in ("from rectified-flow", "powers of two", "Luhman & Luhman"))


def test_all_about_one_method(cmbench: Commands):
    out = cmbench("list", "methods", "pd").out
    for part in (
        "progressive distillation",
        "https://arxiv.org/abs/2202.00512",
        "powers of two up to 32",
        "its own, learnt from edm",
        "cifar10: smoke, quick, gpu, paper",
        "pd.last_factor: 2",
        "pd.fit.steps: 1000",
        "variance-preserving",
    ):
        assert part in out
    row = json.loads(cmbench("list", "methods", "pd", "--json").out)
    assert row == next(r for r in json.loads(cmbench("list", "--json").out) if r["name"] == "pd")
    assert (row["year"], row["parent"], row["trains"], row["pairs"]) == (2022, "edm", True, False)
    assert row["settings"][0].keys() == {field.name for field in dataclasses.fields(catalogue.Setting)}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("methods", "ddin"), "did you mean 'ddim'"),
        (("datasets", "digits"), "list datasets takes no name"),
        (("datasets", "--format", "md"), "--format md is for methods"),
        (("methods", "pd", "--format", "md"), "--format md"),
        (("methods", "--format", "pdf"), "--format pdf"),
    ],
)
def test_wrong_use_of_list(cmbench: Commands, words: tuple[str, ...], part: str):
    made = cmbench("list", *words)
    assert made.status == 2
    assert part in made.error


def test_the_page_is_the_one_made_from_the_code(cmbench: Commands):
    made = cmbench("list", "methods", "--format", "md").out
    assert PAGE.read_text(encoding="utf-8") == made, "run `make docs`"


def test_links_within_the_page_lead_somewhere():
    import re

    page = PAGE.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in page.splitlines()
        if line.startswith("#")
    }
    targets = set(re.findall(r"\]\(#([^)]+)\)", page))
    assert targets and targets <= headings
