"""From a model reference to the canonical checkpoint: the package's front door to weights.

Imports happen on use: reading a checkpoint needs torch and transformers, naming one does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitquilt.models.checkpoint import Checkpoint, Finding

__all__ = ["Checkpoint", "Finding", "from_config", "open_checkpoint"]


def open_checkpoint(reference: str | Path, *, weights: bool = True) -> Checkpoint:
    """Open a model in canonical form; weights are read when asked for.

    Args:
        reference: ``demo``, a Hugging Face directory, a hub id, a GGUF file, or a config.json or a
            directory without weights, which gives shapes only.
        weights: False where shapes are enough: a hub id's weights are not downloaded then.

    Raises:
        UserError: it cannot be found, read, or rewritten exactly.
    """
    from bitquilt.models.sources import hugging_face, resolve
    from bitquilt.runtime.files import read_json

    path = resolve.resolve(str(reference), weights=weights)
    if path.suffix == ".gguf":
        from bitquilt.models.sources.gguf import open_gguf

        return open_gguf(path)
    if path.is_file():
        return hugging_face.open_config(read_json(path), path.resolve().parent.name)
    name = resolve.short_name(str(reference), path)
    if not weights and resolve.on_hub(str(reference)):
        return hugging_face.without_weights(path, name)
    return hugging_face.open_directory(path, name)


def from_config(config: dict[str, Any], name: str) -> Checkpoint:
    """A checkpoint without weights, its shapes from a published config alone.

    Raises:
        UserError: the architecture, or one field of it, has no exact canonical form; from ``load``
            always, for there is nothing to load.
    """
    from bitquilt.models.sources import hugging_face

    return hugging_face.open_config(config, name)
