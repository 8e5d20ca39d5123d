"""Tables as LaTeX: booktabs tabulars of pure ASCII, which compile under any input encoding."""

import unicodedata
from collections.abc import Sequence

from cmbench.report.layout import MARKS, Cell, Row, Table

_SIGNS = {
    "\\": r"\textbackslash{}",
    **{sign: "\\" + sign for sign in "&%#_{}"},
    "$": r"$\mathdollar$",  # \$ asks for bitmap fonts where cm-super is not installed; so does \textdagger
    "~": r"\textasciitilde{}",
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

    ``standalone`` wraps them in a document that compiles as it stands.
    """
    tabulars = [_tabular(table) for table in tables]
    if not standalone:
        return "\n".join(tabulars)
    head = ["\\documentclass{article}", "\\usepackage{booktabs}", "\\usepackage[margin=15mm]{geometry}"]
    head += ["\\begin{document}", "\\footnotesize\\noindent"]
    return "\n".join([*head, "\n\\bigskip\\noindent\n".join(tabulars) + "\\end{document}", ""])


def _tabular(table: Table) -> str:
    letters = table.letters

    def shown(cell: Cell) -> str:
        text = f"\\textbf{{{escape(cell.text)}}}" if cell.bold else escape(cell.text)
        return text + "".join(f"\\textsuperscript{{{letters[note]}}}" for note in cell.notes)

    def line(row: Row) -> str:
        method = shown(row.method) + (_superscript(MARKS[row.mark][0]) if row.mark else "")
        method += f" ({escape(row.reference)})" if row.reference else ""
        cells = [method, shown(row.nfe), *(shown(cell) for cell in row.cells)]
        cells += [row.origin] if table.measured else []
        return _line(cells)

    head = table.headers
    shape = "l" + "r" * (1 + len(table.columns)) + ("l" if table.measured else "")
    lines = [f"% {escape(table.title)}; needs \\usepackage{{booktabs}}", f"\\begin{{tabular}}{{{shape}}}"]
    lines += ["\\toprule", _line([escape(text) for text in head])]
    for group in table.groups:
        lines += ["\\midrule", f"\\multicolumn{{{len(head)}}}{{l}}{{\\textbf{{{escape(group.title)}}}}} \\\\"]
        lines += [line(row) for row in group.rows]
    lines += ["\\bottomrule", "\\end{tabular}"]
    if notes := table.footnotes:
        lines += ["\\par\\smallskip", "{\\footnotesize\\parindent0pt"]
        lines += [f"{_superscript(note.mark)}{escape(note.text)}\\par" for note in notes]
        lines += ["}"]
    return "\n".join([*lines, ""])


def _superscript(mark: str) -> str:
    return f"\\textsuperscript{{{escape(mark)}}}" if mark else ""


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
