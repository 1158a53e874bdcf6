"""The text that ``bitquilt quantize`` measures its files on, read by the original."""

from __future__ import annotations

from bitquilt.calibration import corpus
from bitquilt.calibration.text import encoder, held_out_windows
from bitquilt.calibration.text_budget import WINDOW, text_budget
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import ClosingTeacher
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.workdir import WorkDir


def closing_text(checkpoint: Checkpoint, work: WorkDir) -> ClosingTeacher:
    """The original on the windows of the closing figures; ``work`` is that of the run."""
    weights = sum(rows * columns for rows, columns in checkpoint.matrices.values())
    budget = text_budget(weights, on_gpu=compute_device().type != "cpu")
    held_out, calibration = corpus.bundled("held-out"), corpus.bundled("calibration")
    text, _ = held_out_windows(held_out, calibration, encoder(checkpoint), budget.held_out, WINDOW)
    teacher = OriginalModel(checkpoint, work).on(text.tokens, text.owners)
    return ClosingTeacher(teacher, text.unlike)
