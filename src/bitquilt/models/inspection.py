"""What a model is, what it costs, and what is odd about it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitquilt.models import open_checkpoint
from bitquilt.models.canonical import has_tables
from bitquilt.models.checkpoint import EMBEDDING, HEAD, Checkpoint, Finding
from bitquilt.models.sources.resolve import resolve, short_name
from bitquilt.models.sources.safetensors import StoredTensor, files, scan
from bitquilt.runtime.files import read_json

MODEL_PARTS = ("embedding", "attention", "mlp", "norms", "head")
UNCOUNTED = (
    "There are none here, and bitquilt cannot count them by the config of such a model; give a "
    "directory that has its safetensors files, too."
)
"""What is said of a model of an unknown architecture whose config alone is here."""


@dataclass(frozen=True)
class ModelPart:
    """One part of a model and its size as the source stores it."""

    name: str
    """One of :data:`MODEL_PARTS`."""
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What :func:`inspect` finds; sizes are those of the source."""

    name: str
    architecture: str
    """model_type as published, or a GGUF file's in Hugging Face's words."""
    canonical_architecture: str
    """model_type that it is quantized and written as."""
    parameters: int
    bytes: int
    types: dict[str, int]
    """Storage type → bytes of the tensors on it, most first."""
    file_type: str | None
    """What llama.cpp calls a GGUF file as a whole: ``Q4_K_M``; None for other sources."""
    context: int
    """Longest sequence in tokens."""
    layers: int
    hidden_size: int
    tied: bool
    """Whether the embedding is the head too; the head then costs nothing."""
    parts: tuple[ModelPart, ...]
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as plain dicts and lists, ready for JSON."""
        return dataclasses.asdict(self)


def inspect(reference: str) -> Inspection:
    """Look at a model without loading its weights.

    Args:
        reference: ``demo``, a Hugging Face directory, a hub id, a GGUF file, or a config.json.

    Raises:
        UserError: it cannot be found or read, or bitquilt has no exact canonical form for it.
    """
    path = resolve(reference, weights=False)
    if path.is_dir() and not has_tables(read_json(path / "config.json")):
        return _inspection_without_tables(short_name(reference, path), path)
    return inspection_of(open_checkpoint(reference))


def inspection_of(checkpoint: Checkpoint) -> Inspection:
    """The inspection of an open checkpoint."""
    parts = tuple(_part(name, checkpoint) for name in MODEL_PARTS)
    return Inspection(
        name=checkpoint.name,
        architecture=checkpoint.original_config["model_type"],
        canonical_architecture=checkpoint.config["model_type"],
        parameters=sum(part.parameters for part in parts),
        bytes=sum(part.bytes for part in parts),
        types=checkpoint.source_types,
        file_type=checkpoint.file_type,
        context=checkpoint.config["max_position_embeddings"],
        layers=checkpoint.layers,
        hidden_size=checkpoint.config["hidden_size"],
        tied=checkpoint.tied,
        parts=parts,
        findings=(*checkpoint.findings, *_trained_for(checkpoint)),
    )


def _inspection_without_tables(name: str, path: Path) -> Inspection:
    """The inspection of a model that goes by its base: what its config and headers say."""
    published = read_json(path / "config.json")
    text = published.get("text_config", published)
    tensors = scan(files(path))
    kind = str(published.get("model_type"))
    types: Counter[str] = Counter()
    for tensor in tensors.values():
        types[tensor.dtype] += tensor.raw_bytes
    parts = tuple(_named_part(part, tensors) for part in MODEL_PARTS)
    return Inspection(
        name=name,
        architecture=kind,
        canonical_architecture=kind,
        parameters=sum(part.parameters for part in parts),
        bytes=sum(part.bytes for part in parts),
        types=dict(types.most_common()),
        file_type=None,
        context=int(text.get("max_position_embeddings") or 0),
        layers=int(text.get("num_hidden_layers") or 0),
        hidden_size=int(text.get("hidden_size") or 0),
        tied=bool(tensors) and not any(part.name == "head" and part.tensors for part in parts),
        parts=parts,
        findings=(
            Finding(
                "model_type",
                f"bitquilt does not know {kind} itself. `bitquilt quantize` first lets llama.cpp's "
                "converter (for a GGUF file) or mlx-lm (for MLX) write the model unquantized, and "
                "then quantizes that. transformers runs the model for calibration and measurement.",
            ),
            *([] if tensors else [Finding("weights", UNCOUNTED)]),
        ),
    )


def _named_part(name: str, tensors: Mapping[str, StoredTensor]) -> ModelPart:
    """A part of a model of any architecture, as far as names tell; ``mlp`` has all the rest."""
    own = [tensor for each, tensor in tensors.items() if _likely_part(each, tensor) == name]
    return ModelPart(
        name=name,
        tensors=len(own),
        parameters=sum(math.prod(tensor.shape) for tensor in own),
        bytes=sum(tensor.raw_bytes for tensor in own),
    )


def _likely_part(name: str, tensor: StoredTensor) -> str:
    if "embed" in name:
        return "embedding"
    if HEAD in name:
        return "head"
    if len(tensor.shape) == 1:
        return "norms"
    return "attention" if "attn" in name or "attention" in name else "mlp"


def _trained_for(checkpoint: Checkpoint) -> list[Finding]:
    """Say which types the weights lie on already, where the source is not quantized itself."""
    if checkpoint.quantized:
        return []
    counts = Counter(checkpoint.levels.values())
    return [
        Finding(
            "levels",
            f"{count} of {len(checkpoint.matrices)} matrices have only values that {name} can "
            f"hold, so the checkpoint was trained for it. They lose next to nothing as {name} in a "
            "GGUF file, or as the MLX type with the same levels, and a search takes that into "
            "account.",
        )
        for name, count in counts.most_common()
    ]


def part_of(tensor: str) -> str:
    """The part that a tensor belongs to."""
    if tensor.startswith(EMBEDDING):
        return "embedding"
    if tensor.startswith(HEAD):
        return "head"
    if tensor.endswith("norm.weight"):
        return "norms"
    return "attention" if ".self_attn." in tensor else "mlp"


def _part(name: str, checkpoint: Checkpoint) -> ModelPart:
    """Tensors that the rewrite added are not in the source and count nothing."""
    tensors = [t for t in checkpoint.shapes if part_of(t) == name and checkpoint.source_bytes[t]]
    return ModelPart(
        name=name,
        tensors=len(tensors),
        parameters=sum(math.prod(checkpoint.shapes[t]) for t in tensors),
        bytes=sum(checkpoint.source_bytes[t] for t in tensors),
    )
