"""The vision tower published with the files of a model: ``mmproj-NAME.gguf`` beside GGUF files,
``vision.safetensors`` in an MLX directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitquilt.errors import UserError
from bitquilt.evaluation.model_file import ModelFile
from bitquilt.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class VisionTower:
    """A tower, and the model files that see with it."""

    path: Path
    files: Sequence[ModelFile]
    stored_as: str
    """The type of most of its bytes."""

    @property
    def nbytes(self) -> int:
        """Its size on disk."""
        return self.path.stat().st_size


def towers_beside(files: Sequence[ModelFile], original: Checkpoint) -> list[VisionTower]:
    """Find the towers that go by the names of model files.

    Args:
        files: of one model.
        original: that they were made from.

    Raises:
        UserError: a tower is another model's, or its file is damaged.
    """
    found: dict[Path, list[ModelFile]] = {}
    for file in files:
        if (path := file.target.vision_beside(file.path)) is not None:
            found.setdefault(path, []).append(file)
    return [
        VisionTower(path, own, _stored_as(path, own[0], original)) for path, own in found.items()
    ]


def _stored_as(path: Path, file: ModelFile, original: Checkpoint) -> str:
    """Return the type of most of a tower's bytes, if it gives embeddings of the model's width."""
    width, types = file.target.vision_tensors(path)
    own = original.config["hidden_size"]
    if width != own:
        raise UserError(
            f"{path} gives embeddings of width {width}, and those of {original.name} have {own}: "
            "it is another model's vision tower; move it to another directory"
        )
    return types.most_common(1)[0][0]
