"""A Hugging Face directory of a family that bitquilt has no tables of, as it was published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from bitquilt.errors import UserError
from bitquilt.models.audit import audit_template
from bitquilt.models.canonical import is_wrapper, untrained_name
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.fingerprint import checkpoint_fingerprint
from bitquilt.models.generation import read_generation
from bitquilt.models.sources import safetensors
from bitquilt.models.sources.adapter import about_adapter
from bitquilt.models.sources.hugging_face import chat_template, other_templates
from bitquilt.models.sources.quantized import QuantizedTensor, joined
from bitquilt.models.sources.tensors import bytes_by_type
from bitquilt.models.sources.tokenizer_files import about_system_prompt, usable_tokenizer
from bitquilt.runtime.files import read_json

ENDLESS = 1 << 20
"""The context of a model whose config knows no end of it, as of a state-space model."""

_WHOLE_NUMBERS = ("BOOL", "U8", "I8", "I16", "I32", "I64")
"""Types of tensors that are no weights, such as tables of positions."""


def open_as_published(directory: Path, name: str) -> Checkpoint:
    """Read a directory's config, headers and tokenizer; weights stay on disk.

    Tensors have the shapes that they are stored with, and the names without what training left. The
    config is the language model's, with the fields that all have as transformers calls them.

    Raises:
        UserError: something is missing or damaged, or transformers does not know the model's type.
    """
    published = read_json(directory / "config.json")
    files = safetensors.files(directory)
    if not files:
        raise UserError(f"{directory} has no safetensors files; download the model's weights")
    wrapped = is_wrapper(published)
    stored = {
        untrained_name(raw, wrapped=wrapped): (raw, at)
        for raw, at in joined(safetensors.scan(files), published).items()
    }
    place, converted = usable_tokenizer(directory)
    template, where = chat_template(place)
    types = {own: at.dtype for own, (_, at) in stored.items() if at.dtype not in _WHOLE_NUMBERS}
    nbytes = {own: stored[own][1].nbytes for own in types}
    shapes = {own: tuple(at.shape) for own, (_, at) in stored.items()}

    def read(tensor: str) -> torch.Tensor:
        raw, at = stored[tensor]
        return at.decoded() if isinstance(at, QuantizedTensor) else safetensors.read(raw, at)

    return Checkpoint(
        name=name,
        known=False,
        config=_language_config(directory, published),
        original_config=published,
        shapes=shapes,
        reader=read,
        source_types=bytes_by_type(types, nbytes),
        tokenizer_dir=place,
        chat_template=template,
        named_templates=other_templates(place),
        generation_config=read_generation(directory),
        findings=(
            *audit_template(template, where),
            *about_system_prompt(directory, template),
            *converted,
            *about_adapter(directory),
        ),
        fingerprint=checkpoint_fingerprint(published, shapes, files),
        source_bytes=nbytes,
        tensor_types=types,
        vision=directory if published.get("vision_config") else None,
    )


def _language_config(directory: Path, published: dict[str, Any]) -> dict[str, Any]:
    try:
        text = AutoConfig.from_pretrained(directory, local_files_only=True).get_text_config()
    except Exception as error:  # whatever the model's own code raises
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"transformers cannot read the config of {directory}: {reason}; take a newer version "
            "of transformers, if it knows this model"
        ) from error
    found = {**published, **published.get("text_config", {})}
    for field in ("vocab_size", "hidden_size", "num_hidden_layers", "eos_token_id"):
        found[field] = getattr(text, field, found.get(field))
    found["max_position_embeddings"] = getattr(text, "max_position_embeddings", None) or ENDLESS
    return found
