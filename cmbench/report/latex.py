"""Tables as LaTeX: booktabs tabulars of pure ASCII, which compile under any input encoding."""

import re
import textwrap
import unicodedata
from collections.abc import Sequence

from cmbench.report.layout import MARKS, Cell, Row, Table

_SIGNS = {
    "\\": r"\textbackslash{}",
    **{sign: "\\" + sign for sign in "&%#_{}"},
    "$": r"$\mathdollar$",  # \$ asks for bitmap fonts where cm-super is not installed; so does \textdagger
    "~": r"\textasciitilde{}",
    "\u00a0": "~",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "†": r"$\dagger$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "σ": r"$\sigma$",
    "ρ": r"$\rho$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "’": "'",
    "ß": r"\ss{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
}
_ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
}


def escape(text: str) -> str:
    r"""``text`` for LaTeX's text mode, in ASCII: ``Grcić & Co`` -> ``Grci\'{c} \& Co``.

    An accent that LaTeX's default encoding lacks is left out (``ą`` -> ``a``), any other unknown character
    becomes ``?``, rather than an error of the compiler.
    """
    out: list[str] = []
    for sign in text:
        if sign in _SIGNS:
            out.append(_SIGNS[sign])
        elif sign.isascii():
            out.append(sign)
        else:
            base, *accents = list(unicodedata.normalize("NFD", sign))
            for accent in accents:
                base = f"\\{_ACCENTS[accent]}{{{base}}}" if accent in _ACCENTS else base
            out.append(base if base.isascii() else "?")
    return "".join(out)


def latex(tables: Sequence[Table], *, standalone: bool = False) -> str:
    r"""One ``tabular`` a table, notes below it; they need ``\usepackage{booktabs}`` and nothing else.

    ``standalone`` makes a document that compiles as it stands, where a table is a ``longtable``, which goes on over
    pages, with its title as caption.
    """
    if not standalone:
        return "\n".join(_tabular(table) for table in tables)
    width = max(map(_width, tables), default=0)
    lying = ",landscape" if width > _UPRIGHT["scriptsize"] else ""
    size = "scriptsize" if _UPRIGHT["footnotesize"] < width <= _UPRIGHT["scriptsize"] else "footnotesize"
    head = [
        "\\documentclass{article}",
        "\\usepackage{booktabs,longtable}",
        f"\\usepackage[a4paper,margin=15mm{lying}]{{geometry}}",
        "\\setcounter{LTchunksize}{1000}",
        "\\setlength{\\LTleft}{0pt}\\setlength{\\LTpre}{1ex}\\setlength{\\LTpost}{0pt}",
        "\\setlength{\\tabcolsep}{4pt}",
        "\\begin{document}",
        f"\\{size}\\parindent0pt",
    ]
    body = "\n\\clearpage\n".join(_longtable(table) for table in tables)
    return "\n".join([*head, body + "\\end{document}", ""])


_UPRIGHT = {"footnotesize": 112, "scriptsize": 128}  # signs of each size that an upright page has room for


def _width(table: Table) -> int:
    """About how many signs wide a table is."""
    methods = max((len(row.method.text) + len(row.reference) + 3 for _, row in table.rows()), default=0)
    return methods + sum(max(map(len, head)) + 2 for head in _heads(table)[1:])


def _heads(table: Table) -> list[list[str]]:
    """The headers in lines as wide as the cells below them; an arrow stays with its word."""
    rows = [row for _, row in table.rows()]
    cells = [[row.method.text for row in rows], [row.nfe.text for row in rows]]
    cells += [[row.cells[place].text for row in rows] for place in range(len(table.columns))]
    cells += [[table.origin(row) for row in rows]] if table.origins else []
    wide = [max(map(len, [*column, "difference"])) for column in cells]
    return [
        textwrap.wrap(re.sub(" (?=[↓↑])", "\u00a0", header), width, break_on_hyphens=False)
        for header, width in zip(table.headers, wide, strict=True)
    ]


def _tabular(table: Table) -> str:
    needs = f"% {escape(table.title)}; needs \\usepackage{{booktabs}}"
    lines = [needs, f"\\begin{{tabular}}{{{_shape(table)}}}", "\\toprule", _header(table)]
    lines += [*_body(table), "\\bottomrule", "\\end{tabular}", *_notes(table)]
    return "\n".join([*lines, ""])


def _longtable(table: Table) -> str:
    head = [*_widest(table), "\\toprule", _header(table)]
    lines = [f"\\textbf{{{escape(table.title)}}}", f"\\begin{{longtable}}{{{_shape(table)}}}"]
    lines += [*head, "\\endfirsthead", *head, "\\midrule", "\\endhead"]
    lines += [*_body(table), "\\bottomrule", "\\end{longtable}", *_notes(table)]
    return "\n".join([*lines, ""])


def _widest(table: Table, count: int = 4) -> list[str]:
    """Rows of each column's longest entries, which ``\\kill`` measures and does not print.

    A longtable learns its widths from an earlier run; with these its header fits its rows in the first one.
    """
    columns = list(zip(*(_entries(table, row) for _, row in table.rows()), strict=True))
    longest = [sorted(column, key=lambda text: -len(_COMMAND.sub("", text)))[:count] for column in columns]
    rows = [*(_line(row) for row in zip(*longest, strict=True)), *_titles(table)]
    return [row.removesuffix("*").removesuffix("\\\\") + "\\kill" for row in rows]


_COMMAND = re.compile(r"\\[a-zA-Z]+|[\\{}$^]")


def _titles(table: Table) -> list[str]:
    """The row that names each group; no page ends with it."""
    wide = len(table.headers)
    return [
        f"\\multicolumn{{{wide}}}{{l}}{{\\textbf{{{escape(group.title)}}}}} \\\\*" for group in table.groups
    ]


def _shape(table: Table) -> str:
    return "l" + "r" * (1 + len(table.columns)) + ("l" if table.origins else "")


def _header(table: Table) -> str:
    heads = [[escape(line) for line in head] for head in _heads(table)]
    return _line(["\\shortstack[r]{" + "\\\\".join(head) + "}" if head[1:] else head[0] for head in heads])


def _entries(table: Table, row: Row) -> list[str]:
    """The row's cells as LaTeX prints them."""
    letters = table.letters

    def shown(cell: Cell) -> str:
        text = f"\\textbf{{{escape(cell.text)}}}" if cell.bold else escape(cell.text)
        return text + "".join(f"\\textsuperscript{{{letters[note]}}}" for note in cell.notes)

    method = shown(row.method) + (_superscript(MARKS[row.mark][0]) if row.mark else "")
    method += f" ({escape(row.reference)})" if row.reference else ""
    cells = [method, shown(row.nfe), *(shown(cell) for cell in row.cells)]
    return [*cells, table.origin(row)] if table.origins else cells


def _body(table: Table) -> list[str]:
    lines: list[str] = []
    for group, title in zip(table.groups, _titles(table), strict=True):
        lines += ["\\midrule", title]
        lines += [_line(_entries(table, row)) for row in group.rows]
    return lines


def _notes(table: Table) -> list[str]:
    if not table.footnotes:
        return []
    lines = [f"{_superscript(note.mark)}{escape(note.text)}\\par" for note in table.footnotes]
    return ["\\par\\smallskip", "{\\parindent0pt", *lines, "}"]


def _superscript(mark: str) -> str:
    return f"\\textsuperscript{{{escape(mark)}}}" if mark else ""


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
