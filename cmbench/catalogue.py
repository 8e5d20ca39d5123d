"""What there is to say of each method, gathered from its :class:`~cmbench.methods.Method` and its recipe class.

``cmbench list methods`` prints it; :mod:`cmbench.catalogue_page` makes docs/methods.md from it. Loads no network
library of its own accord; a method's module may.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmbench import methods, recipes, registry
from cmbench.methods import DIRECT, DISTILLATION, SAMPLERS, Method

PROBED = 2048
"""Numbers of evaluations that are tried, from 1, to find out which a method can do."""


@dataclass(frozen=True)
class Setting:
    """One value of a recipe: its name for ``--set``, its default as TOML (empty for a table of others), what it is."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
        trains: whether it trains a network; if not, it samples with that of ``parent``.
        parent: the method whose network it starts from, learns from or samples with; None where it needs none.
        pairs: whether it trains on synthetic pairs that its teacher makes first.
        nfe: the numbers of evaluations that it can do with its default settings, in words.
        presets: data set -> presets of its recipe; ``generic`` serves data sets without a recipe of their own.
    """

    name: str
    label: str
    group: str
    reference: str
    year: int | None
    paper: str
    summary: str
    trains: bool
    parent: str | None
    pairs: bool
    nfe: str
    usual_nfe: tuple[int, ...]
    deterministic: bool
    differs: str
    presets: Mapping[str, Sequence[str]]
    settings: tuple[Setting, ...]

    @property
    def network(self) -> str:
        """Where its network comes from, in a word or two."""
        if not self.trains:
            return f"{self.parent}'s"
        return f"from {self.parent}" if self.parent else "own"

    @property
    def link(self) -> str | None:
        """Address of the paper."""
        kind, _, number = self.paper.partition(":")
        return f"https://arxiv.org/abs/{number}" if kind.lower() == "arxiv" else None


def entries() -> list[Entry]:
    """Every registered method: the paper's groups in its order, then others; by year and name within each."""
    order = {group: place for place, group in enumerate((SAMPLERS, DISTILLATION, DIRECT))}
    made = [entry(methods.get(name)) for name in registry.names("method")]
    return sorted(made, key=lambda e: (order.get(e.group, len(order)), e.group, e.year or 0, e.name))


def entry(method: Method) -> Entry:
    """What there is to say of one method."""
    recipe = method.recipe()
    allowed = [nfe for nfe in range(1, PROBED + 1) if not method.refuses(nfe, recipe)]
    variant = method.variant(allowed[0], recipe) if allowed else ""
    pairs: Callable[[str, Any], object] = getattr(method, "pairs", lambda _variant, _recipe: None)
    return Entry(
        name=method.name,
        label=method.label,
        group=method.group,
        reference=method.reference,
        year=method.year,
        paper=method.paper,
        summary=method.summary,
        trains=method.train is not None,
        parent=_ancestor(method, variant, recipe),
        pairs=pairs(variant, recipe) is not None,
        nfe=in_words(allowed),
        usual_nfe=method.nfes,
        deterministic=method.deterministic,
        differs=method.differs,
        presets=recipes.offered(method.package, method.name),
        settings=tuple(settings(recipe, f"{method.name}.")),
    )


def _ancestor(method: Method, variant: str, recipe: Any) -> str | None:
    """The nearest parent that is another method: a stage's parent may be an earlier stage."""
    seen = set()
    while (parent := method.parent(variant, recipe)) and parent.variant not in seen:
        if parent.method != method.name:
            return parent.method
        seen.add(parent.variant)
        variant = parent.variant
    return None


def in_words(allowed: Sequence[int], probed: int = PROBED) -> str:
    """Numbers of evaluations, ascending, out of 1..``probed``: ``any``, ``odd``, ``powers of two up to 32``."""
    if not allowed:
        return "none by default"
    if len(allowed) <= 3:
        return ("only " if len(allowed) == 1 else "") + _listed(allowed)
    first, last, step = allowed[0], allowed[-1], allowed[1] - allowed[0]
    if list(allowed) == [2**k for k in range(32) if first <= 2**k <= last]:
        return "powers of two" + _ends(first, last, 1, 2 * last > probed)
    if list(allowed) == list(range(first, last + 1, step)):
        ends = _ends(first, last, step, last + step > probed)
        if step == 1:
            return ends.removeprefix(" ") or "any"
        if step == 2:
            return ("odd" if first % 2 else "even") + ends
        if first == step:
            return f"multiples of {step}{ends}"
    lacking = sorted(set(range(1, probed + 1)).difference(allowed))
    if len(lacking) <= 3:
        return f"any but {_listed(lacking)}"
    if len(allowed) <= 6:
        return _listed(allowed)
    return f"{_listed(allowed[:3])}, ..." + ("" if last > probed - 10 else f", {last}")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _ends(first: int, last: int, least: int, unbounded: bool) -> str:
    if first <= least:
        return "" if unbounded else f" up to {last}"
    return f" from {first}" if unbounded else f" from {first} to {last}"


# --- settings ------------------------------------------------------------------------------------


def settings(recipe: Any, prefix: str = "") -> Iterator[Setting]:
    """The settings of a recipe, each with its value; those of recipes inside it under dotted names."""
    meanings = documented(type(recipe))
    for item in dataclasses.fields(recipe):
        name, value = f"{prefix}{item.name}", getattr(recipe, item.name)
        if dataclasses.is_dataclass(value):
            yield Setting(name, "", meanings.get(item.name, ""))
            yield from settings(value, f"{name}.")
        else:
            yield Setting(name, as_toml(value), meanings.get(item.name, ""))


def documented(cls: type) -> dict[str, str]:
    """What the section ``Attributes:`` of a class's docstring, and of those it inherits from, says of each name."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        text = re.sub(
            r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", inspect.cleandoc(one.__doc__ or "")
        )  # Sphinx's roles
        lines = text.partition("Attributes:\n")[2].splitlines()
        names: list[str] = []
        for line in lines:
            if line and not line.startswith("    "):
                break
            if heading := re.match(r"    (\w+(?:, \w+)*): (.*)", line):
                names = heading[1].split(", ")
                found |= dict.fromkeys(names, heading[2])
            elif line.strip():
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def as_toml(value: Any) -> str:
    """A value as one would write it in a recipe."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return str(value)


# --- in words -----------------------------------------------------------------------------------


def facts(one: Entry) -> dict[str, str]:
    """An entry in words, the settings left out."""
    network = f"that of {one.parent}"
    if one.trains:
        network = f"its own, learnt from {one.parent}" if one.parent else "its own, learnt from data alone"
    if one.pairs:
        network += ", on synthetic pairs"
    return {
        "NFE": f"{one.nfe}; usually shown at {' and '.join(map(str, one.usual_nfe))}",
        "network": network,
        "deterministic": "yes" if one.deterministic else "no",
        "differs from the paper": one.differs or "nothing that we know of",
        "presets": "; ".join(f"{name}: {', '.join(own)}" for name, own in one.presets.items()) or "none",
    }
