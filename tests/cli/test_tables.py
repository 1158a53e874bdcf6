"""Tables in a terminal of 80 columns."""

from __future__ import annotations

import pytest

from bitquilt.cli.tables import figures_table, stdout_console
from bitquilt.report.figures import HEADINGS

ROW = ("25.11–42.49", "1.0054–1.0220", "1.712–2.120", "24.73–42.06")


def test_no_figure_is_broken_by_a_long_heading(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    fields = ("perplexity", "perplexity_ratio", "bits_per_byte")
    headings = [*(HEADINGS[field] for field in fields), "the original's perplexity"]
    table = figures_table("", headings)
    table.add_row("traces, uncertain", *ROW)
    stdout_console().print(table)
    printed = capfd.readouterr().out
    assert all(figure in printed for figure in ROW)
    assert max(map(len, printed.splitlines())) <= 80
