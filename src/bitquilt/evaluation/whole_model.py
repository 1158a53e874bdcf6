"""A model that is no quantized file, to be measured as PyTorch runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitquilt.engines.torch import TorchEngine
from bitquilt.evaluation.model_file import ModelFile, told_apart
from bitquilt.models import open_checkpoint
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.files import each_path
from bitquilt.targets import TARGETS

FLOAT32 = 4


@dataclass(frozen=True)
class WholeModel:
    """A model in PyTorch, in float32 and in this process; it stands beside :class:`ModelFile`."""

    path: Path
    """What was asked for: a directory, a hub id, or ``demo``."""
    checkpoint: Checkpoint
    name: str
    """For tables."""
    engine = "torch"

    @property
    def weights(self) -> int:
        """The number of its weights."""
        return self.checkpoint.weights

    @property
    def nbytes(self) -> int:
        """What PyTorch keeps of it in memory."""
        return FLOAT32 * self.weights

    def start(self) -> TorchEngine:
        """The model in PyTorch."""
        return TorchEngine(self.checkpoint)


def models_at(references: str | Path | Sequence[str | Path]) -> list[ModelFile | WholeModel]:
    """Files and whole models, as :func:`bitquilt.engines.open_engine` would run them.

    Raises:
        UserError: there is no such model, or it is given twice.
    """
    return told_apart([_model_at(reference) for reference in each_path(references)])


def _model_at(reference: str | Path) -> ModelFile | WholeModel:
    if any(target.holds(Path(reference)) for target in TARGETS.values()):
        return ModelFile.at(reference)
    checkpoint = open_checkpoint(reference)
    return WholeModel(Path(reference), checkpoint, checkpoint.name)
