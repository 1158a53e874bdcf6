"""Bases of models that bitquilt knows, written by our own writer in place of a converter."""

from __future__ import annotations

from pathlib import Path

from bitquilt.models import open_checkpoint
from bitquilt.targets import GGUF
from tests.targets.conftest import Model


def base_file(directory: Path, path: Path) -> Path:
    """Write a checkpoint's weights as they are."""
    model = Model(directory, open_checkpoint(directory))
    GGUF.write(model.checkpoint, model.on("F32"), model.packed, path, "{}")
    return path
