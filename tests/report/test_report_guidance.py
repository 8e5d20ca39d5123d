"""Guided runs are rows and lines of their own."""

from pathlib import Path

import pytest
from report_factory import record

from cmbench.report import figures, style, tables

STRONG = {"weight": 2.0}
NARROW = {"weight": 2.0, "interval": [0.2, 5.0]}
RECORDS = [
    *(record("ddim", nfe) for nfe in (10, 20, 40)),
    *(record("ddim", nfe, counted=2 * nfe, guidance=STRONG) for nfe in (10, 20)),
    record("ddim", 10, counted=16, guidance=NARROW),
]


def test_a_guided_row_has_a_footnote_and_its_unguided_twin_has_none():
    (group,) = tables.build(RECORDS, dataset="cifar10", published=()).groups
    notes = [(row.nfe.text, row.nfe_asked, row.method.notes) for row in group.rows]
    assert sorted(notes, key=str) == sorted(
        [
            ("10", 10, ()),
            ("20", 20, ()),
            ("40", 40, ()),
            ("20", 10, ("classifier-free guidance w = 2",)),
            ("40", 20, ("classifier-free guidance w = 2",)),
            ("16", 10, ("classifier-free guidance w = 2 for 0.2 < σ ≤ 5",)),
        ],
        key=str,
    )


def test_guided_runs_are_lines_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    monkeypatch.setattr(style, "save", lambda figure, path: drawn.append(figure) or [path])
    figures.nfe(RECORDS, "cifar10", tmp_path)
    texts = {text.get_text() for ax in drawn[0].axes for text in ax.texts}
    assert texts >= {
        "DDIM",
        "DDIM, guidance w = 2",
        "DDIM, guidance w = 2 for 0.2 < σ ≤ 5",
    }
