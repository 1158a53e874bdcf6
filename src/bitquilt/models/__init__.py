"""Models: every source of weights as one canonical checkpoint that all stages read.

In: what a user types (``demo``, a Hugging Face directory or hub id, a GGUF file, a config.json).
Out: a :class:`Checkpoint`: a config that every engine computes exactly, tensors under Hugging
Face's names loaded one at a time in float32, tokenizer and chat template, and what is odd about the
model. A model that cannot be rewritten exactly is refused with a sentence.

    sources/            where models come from: directories, the hub, GGUF files
    architectures/      all that is known of each family, one value a family
    config.py, canonical.py, layout.py    configs completed, rewritten, and the shapes they mean
    checkpoint.py       the checkpoint
    names.py            what the path of a module says: its block, its kind
    gguf_config.py      a config as GGUF's keys, and back
    chat_template.py    messages → the text that the model continues
    blockwise.py        forward passes with one block in memory at a time
    audit.py, inspection.py, fingerprint.py    what is worth knowing about a model
    licence.py, licence_files.py    on what terms a model is passed on

Reading a checkpoint needs torch and transformers, so their imports wait until one is opened.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from bitquilt.gguf import SUFFIX
from bitquilt.models.checkpoint import Checkpoint, Finding
from bitquilt.runtime.files import read_json

__all__ = ["Checkpoint", "Finding", "from_config", "open_checkpoint", "open_original"]


def open_checkpoint(reference: str | Path, *, weights: bool = True) -> Checkpoint:
    """Open a model in canonical form; weights are read when asked for.

    Args:
        reference: ``demo``, a Hugging Face directory, a hub id, a GGUF file, or a config.json or a
            directory without weights, which gives shapes only.
        weights: False where shapes are enough: a hub id's weights are not downloaded then.

    Raises:
        UserError: it cannot be found, read, or rewritten exactly.
    """
    from bitquilt.models.sources import resolve

    path = resolve.resolve(str(reference), weights=weights)
    opened = _opened(str(reference), path, weights)
    return replace(opened, hub_id=resolve.hub_id(str(reference), path))


def open_original(reference: str | Path) -> Checkpoint:
    """Open what model files were made from: in canonical form, or as published where none is known.

    Args:
        reference: what :func:`open_checkpoint` takes; of other families a directory or a hub id.

    Raises:
        UserError: it cannot be found or read.
    """
    from bitquilt.models.canonical import has_tables
    from bitquilt.models.sources import resolve

    path = resolve.resolve(str(reference))
    if not path.is_dir() or has_tables(read_json(path / "config.json")):
        return open_checkpoint(reference)
    from bitquilt.models.sources.as_published import open_as_published

    opened = open_as_published(path, resolve.short_name(str(reference), path))
    return replace(opened, hub_id=resolve.hub_id(str(reference), path))


def _opened(reference: str, path: Path, weights: bool) -> Checkpoint:
    """Open what a reference resolved to."""
    from bitquilt.models.sources import hugging_face, resolve

    if path.suffix == SUFFIX:
        from bitquilt.models.sources.gguf import open_gguf

        return open_gguf(path)
    if path.is_file():
        return hugging_face.open_config(read_json(path), path.resolve().parent.name)
    name = resolve.short_name(reference, path)
    if not weights and resolve.on_hub(reference):
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
