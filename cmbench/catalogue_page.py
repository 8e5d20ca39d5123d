"""The page docs/methods.md, made from the catalogue of methods."""

import re
from collections.abc import Sequence

from cmbench.catalogue import Entry, Setting, facts, settings
from cmbench.recipes import Common
from cmbench.training.fit import Fit

HEAD = """# Methods

Made from the code by `make docs` (`cmbench list methods --format md`); edit the methods, not this page.

NFE are the numbers of network evaluations that a method can do with its default settings. A network is a method's
`own`, learnt from data alone; `from` another method, its teacher; or that method's itself, where a method only
samples. Methods marked `pairs` train on noise and images that their teacher makes first. A sampler is deterministic
where the image is a function of the initial noise alone. Every setting can be changed on the command line:
`--set cd.points=18 cd.fit.steps=5000`; presets (`--preset`) hold tuned values for a data set.
"""

TAIL = """## Settings that all methods share

Without a method's name in front: `--set samples=10000 network.width=512 guidance=1.5`.

{common}
## Classes and guidance

`--set network.class_conditional=true edm.label_dropout=0.1` trains a network that is told the class of each image, and
of one image in ten is not: it learns the null class, whose embedding is zero. Whatever samples with that network then
has a class for each sample, drawn uniformly as a function of the seed and the sample's index; its figures are taken
against the same reference as those of an unconditional network. `cmbench sample --label 3` asks for a class.

`--set guidance=1.5` guides every call of the denoiser, `D(null) + w (D(c) - D(null))` with w = 1.5 (Ho & Salimans,
2022, whose own w is this one less 1; [arXiv:2207.12598](https://arxiv.org/abs/2207.12598)), and
`guidance_interval=[0.2, 5]` those at noise levels within (0.2, 5] (Kynkäänniemi et al., 2024,
[arXiv:2404.07724](https://arxiv.org/abs/2404.07724)). A guided call evaluates the network twice: `--nfe` is the number
of calls, and the NFE that records, tables and figures show is the number of evaluations, 20 for a guided `--nfe 10`,
with a footnote. A guided row stands by itself. Networks that were trained without label dropout, which those of
distilled and consistency models are, cannot be guided; `cmbench` says so and leaves them out.

## Optimisation

The settings under `fit` of every recipe that trains, as `--set cd.fit.steps=5000`.

{fit}"""


def as_markdown(found: Sequence[Entry]) -> str:
    """The page ``docs/methods.md``: an overview of each group, then a section a method."""
    parts = [HEAD]
    for group in dict.fromkeys(one.group for one in found):
        own = [one for one in found if one.group == group]
        rows = [
            (
                *(f"[{one.label}](#{anchor(one)})", f"`{one.name}`", one.reference, one.nfe, one.network),
                *("yes" if one.pairs else "", "yes" if one.deterministic else "no"),
            )
            for one in own
        ]
        heads = ("method", "name", "paper", "NFE", "network", "pairs", "deterministic")
        parts += [f"## {group}\n", _grid(heads, rows), *map(_section, own)]
    tables = {"common": _table(tuple(settings(Common()))), "fit": _table(tuple(settings(Fit())))}
    parts.append(TAIL.format(**tables))
    return "\n".join(parts)


def anchor(one: Entry) -> str:
    """The name that a heading gets from the usual renderers of Markdown."""
    return re.sub(r"[^\w\- ]", "", title(one).lower()).replace(" ", "-")


def title(one: Entry) -> str:
    """The heading of a method's section."""
    return f"{one.label} ({one.name})"


def _section(one: Entry) -> str:
    where = (
        f"[{one.reference}, {one.paper}]({one.link})" if one.link else f"{one.reference} {one.paper}".strip()
    )
    lines = [f"- {name}: {value}" for name, value in facts(one).items()]
    lead = f"### {title(one)}\n\n{one.summary[:1].upper()}{one.summary[1:]}. {where}.\n"
    inside = re.compile(rf"{re.escape(one.name)}\.fit\.")  # these have a table of their own
    table = tuple(row for row in one.settings if not inside.match(row.name))
    return "\n".join([lead, "\n".join(lines) + "\n", *([_table(table)] if table else [])])


def _table(rows: Sequence[Setting]) -> str:
    made = []
    for row in rows:
        meaning = row.meaning.replace("``", "`").replace("|", "\\|")
        if row.name.endswith(".fit"):
            meaning += " See [Optimisation](#optimisation)."
        made.append((f"`{row.name}`", f"`{row.default}`" if row.default else "", meaning))
    return _grid(("setting", "default", ""), made)


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, [":--"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
