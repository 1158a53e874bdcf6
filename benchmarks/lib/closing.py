"""The text that ``bitquilt quantize`` measures its files on, read by the original."""

from __future__ import annotations

from bitquilt.calibration import corpus
from bitquilt.calibration.text import encoder, judging_windows
from bitquilt.calibration.text_budget import WINDOW, text_budget
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import Teacher
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.workdir import WorkDir


def closing_text(checkpoint: Checkpoint, work: WorkDir) -> Teacher:
    """The original on the windows of the closing figures; ``work`` is that of the run."""
    weights = sum(rows * columns for rows, columns in checkpoint.matrices.values())
    budget = text_budget(weights, on_gpu=compute_device().type != "cpu")
    drawn = budget.held_out + budget.selection
    tokens, owners = judging_windows(corpus.bundled("held-out"), encoder(checkpoint), drawn, WINDOW)
    own = slice(budget.held_out)
    return OriginalModel(checkpoint, work).on(tokens[own], owners[own])
