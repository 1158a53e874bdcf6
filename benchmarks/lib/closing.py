"""The text that ``bitquilt quantize`` measures its files on, read by the original."""

from __future__ import annotations

from pathlib import Path

from bitquilt.calibration import corpus
from bitquilt.calibration.text import (
    budget_for,
    encoder,
    held_out_documents,
    held_out_windows,
)
from bitquilt.calibration.text_budget import WINDOW
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import ClosingTeacher
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.workdir import WorkDir


def closing_text(checkpoint: Checkpoint, work: WorkDir, file: Path | None = None) -> ClosingTeacher:
    """The original on the windows of the closing figures.

    Args:
        checkpoint: the original.
        work: the work directory of the run.
        file: the held-out documents of the run, if it was given any.
    """
    budget = budget_for(checkpoint)
    held_out, calibration = held_out_documents(file), corpus.bundled("calibration")
    text, _ = held_out_windows(held_out, calibration, encoder(checkpoint), budget.held_out, WINDOW)
    teacher = OriginalModel(checkpoint, work).on(text.tokens, text.owners)
    return ClosingTeacher(teacher, text.unlike)
