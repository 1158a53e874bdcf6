"""A model with statistics of a little text, for benchmarks where those decide nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shapes import write_random
from torch import Tensor

from bitquilt.calibration import corpus
from bitquilt.calibration.collect import collect_statistics
from bitquilt.calibration.text import calibration_windows, encoder
from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir

WINDOW = 512


@contextmanager
def captured(shape: str, windows: int) -> Iterator[tuple[Checkpoint, Tensor, WorkDir]]:
    """Yield the model ``demo`` or ``950m``, the text that was read, and the work directory."""
    with tempfile.TemporaryDirectory() as directory:
        model = "demo"
        if shape == "950m":
            model = str(Path(directory) / "random")
            write_random(Path(model))
        checkpoint = open_checkpoint(model)
        text, folds = calibration_windows(
            corpus.bundled("calibration"), encoder(checkpoint), windows, WINDOW
        )
        with WorkDir(Path(directory) / "work", {}) as work:
            collect_statistics(BlockwiseModel(checkpoint), text, folds, work, Silent())
            yield checkpoint, text, work
