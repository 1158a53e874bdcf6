"""Files beside a run's: points of the plot of KL against size, if they were measured alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bitquilt.allocation.racing import Difference
from bitquilt.allocation.selection import Ranking
from bitquilt.evaluation.eval_file import save_beside
from bitquilt.report import page
from bitquilt.report.peers import FrontPoint, compared, peers_beside
from bitquilt.report.run_record import load, save
from bitquilt.runtime.workdir import WorkDir
from tests.report.conftest import SETTINGS, estimate, evaluation, record


def put_peer(work: Path, name: str = "theirs-Q4_K_M.gguf", **changes: str) -> Path:
    """A file that somebody else made, evaluated beside ours."""
    path = work.parent / name
    path.write_bytes(b"GGUF" + name.encode())
    save_beside(replace(evaluation(path, 0.08), **changes))
    return path


def test_a_file_that_was_measured_alike_is_a_point(work):
    path = put_peer(work)
    files = [one for one in load(work) if one.figures.evaluated]
    (peer,) = peers_beside(files)
    assert peer == FrontPoint(
        name=path.name,
        label="theirs-Q4_K_M",
        target="gguf",
        nbytes=path.stat().st_size,
        kl=estimate(0.08),
        ours=False,
    )
    report = page.make_report(work)
    svg = report.plots[0].svg()
    assert f"{path.name}, 0.00 MB, KL 0.08 [0.064 – 0.096] nats per token" in svg
    assert "by others, for llama.cpp" in svg
    assert f"Made by others, and measured on the same text: {path.name}." in report.html


@pytest.mark.parametrize("changes", [{"text": "a" * 64}, {"fingerprint": "b" * 64}])
def test_a_file_that_read_another_text_or_was_held_against_another_model_is_none(work, changes):
    put_peer(work, **changes)
    assert peers_beside([one for one in load(work) if one.figures.evaluated]) == []


def test_figures_of_other_bytes_or_of_a_file_that_is_gone_are_none(work):
    put_peer(work).write_bytes(b"GGUF other bytes")
    put_peer(work, "gone.gguf").unlink()
    put_peer(work, "unreadable.gguf.gguf")
    (work.parent / "unreadable.gguf.gguf.eval.json").write_text('{"format": 0}')
    assert peers_beside([one for one in load(work) if one.figures.evaluated]) == []


def test_where_nothing_was_measured_the_page_says_how(work):
    html = page.make_report(work).html
    assert "No file that llama.cpp made at these sizes was measured here" in html
    assert (
        "<code>bitquilt eval tiny-4.5bit.gguf tiny-Q4_K_M.gguf PEER --against tiny</code>" in html
    )
    assert "by others" not in html


def test_a_file_of_another_run_is_ours(work):
    path = put_peer(work, "tiny-3bit.gguf")
    other = work.parent / "other.work"
    with WorkDir(other, SETTINGS) as directory:
        save(directory, replace(record(path, 0.2), nbytes=path.stat().st_size))
    (point,) = peers_beside([one for one in load(work) if one.figures.evaluated])
    assert (point.label, point.ours) == ("3bit", True)


def test_points_are_of_the_text_that_most_files_were_measured_on(work):
    """One was evaluated, too: both have the figures that quantize left."""
    ours = compared(load(work))
    assert [(one.label, one.figures.evaluated) for one in ours] == [
        ("4.5bit", False),
        ("Q4_K_M", False),
    ]
    html = page.make_report(work).html
    assert "Not shown" not in html
    assert "Q4_K_M is a preset: the engine&#39;s own choice of types, rounded by bitquilt." in html
    path = work.parent / "tiny-Q4_K_M.gguf"
    save_beside(evaluation(path, 0.05))
    assert [one.figures.evaluated for one in compared(load(work))] == [True, True]
    assert "when <code>bitquilt quantize</code> wrote" not in page.make_report(work).html


def test_a_file_that_was_measured_on_no_text_of_the_others_is_named(work):
    kept = work / "made" / "tiny-Q4_K_M.gguf.json"
    kept.write_text(kept.read_text().replace("f" * 64, "0" * 64))
    html = page.make_report(work).html
    assert "Not shown, because they were measured on another text: tiny-Q4_K_M.gguf." in html


def test_the_mixes_that_lost_are_told_with_their_text(work):
    rankings = (
        Ranking("race", 0.1, Difference(0.0, 0.0), 4088),
        Ranking("Q4_K_M", 0.14, Difference(0.04, 0.001), 4088),
    )
    with WorkDir(work, SETTINGS) as directory:
        path = work.parent / "tiny-4.5bit.gguf"
        save(directory, replace(record(path, 0.03), rankings=rankings))
    html = page.make_report(work).html
    assert (
        "The types of the race are used: on 4,088 tokens that the search has not "
        "read, their selection KL is 0.1 nats/token; Q4_K_M has 0.14, 40.0% more."
    ) in html
