"""What a model is, what it costs, and what is odd about it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitquilt.errors import UnknownFamilyError, UserError
from bitquilt.gguf import SUFFIX
from bitquilt.gguf.file_type import file_type_name
from bitquilt.gguf.header import GgufHeader, read_header
from bitquilt.models import open_checkpoint
from bitquilt.models.architectures import GGUF_ARCHITECTURES
from bitquilt.models.canonical import has_tables, quantization_method, who_lacks_tables
from bitquilt.models.checkpoint import EMBEDDING, HEAD, Checkpoint, Finding
from bitquilt.models.sources.adapter import about_adapter
from bitquilt.models.sources.quantized import QuantizedTensor, joined, quantization_of
from bitquilt.models.sources.resolve import resolve, short_name
from bitquilt.models.sources.safetensors import StoredTensor, files, scan
from bitquilt.runtime.files import read_json

MODEL_PARTS = ("embedding", "attention", "mlp", "norms", "head")
UNCOUNTED = (
    "There are none here, and bitquilt cannot count them by the config of such a model; give a "
    "directory that has its safetensors files, too."
)
"""What is said of a model of an unknown architecture whose config alone is here."""
FROM_BASE = (
    "{what}. `bitquilt quantize` first lets llama.cpp's "
    "converter (for a GGUF file) or mlx-lm (for MLX) write the model unquantized, and "
    "then quantizes that. transformers runs the model for calibration and measurement."
)
WRITTEN = (
    "bitquilt does not know {kind} itself. {engine} runs what is written here; `bitquilt run`, "
    "`serve`, `tasks`, `bench` and `recipe from` take it, and `eval` compares it with the original."
)
"""What is said of files of such a model."""
QUANTIZED_GGUF = " `bitquilt quantize FILE --imatrix IMATRIX` takes GGUF files of any architecture."
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
"""Names that configs have for the same."""


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
    if path.suffix == SUFFIX:
        header = read_header(path)
        if header.architecture not in GGUF_ARCHITECTURES:
            return inspection_of_gguf(header)
        try:
            return inspection_of(open_checkpoint(reference))
        except UnknownFamilyError:  # by its metadata, and not by its architecture's name
            return inspection_of_gguf(header)
    if path.is_dir() and not has_tables(read_json(path / "config.json")):
        return inspection_of_directory(short_name(reference, path), path)
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


def inspection_of_directory(name: str, path: Path) -> Inspection:
    """The inspection of a model that goes by its base: what its config and headers say."""
    published = read_json(path / "config.json")
    text = published.get("text_config", published)
    tensors = _unpacked(scan(files(path)), published)
    kind, in_mlx = str(published.get("model_type")), "quantization" in published
    about = (
        WRITTEN.format(kind=kind, engine="mlx-lm")
        if in_mlx
        else FROM_BASE.format(what=who_lacks_tables(published))
    )
    return Inspection(
        architecture=kind,
        canonical_architecture=kind,
        file_type=None,
        context=_stated(text, _CONTEXT),
        layers=_stated(text, _LAYERS),
        hidden_size=_stated(text, _WIDTH),
        findings=(
            Finding("model_type", about),
            *([] if tensors else [Finding("weights", UNCOUNTED)]),
            *about_adapter(path),
        ),
        **_counted(name, tensors),
    )


def inspection_of_gguf(header: GgufHeader) -> Inspection:
    """The inspection of a GGUF file of whatever architecture: what its header says."""
    kind, path = header.architecture or "unknown", header.path
    matrices = [one.type.name for one in header.tensors.values() if len(one.shape) > 1]
    about = WRITTEN.format(kind=kind, engine="llama.cpp") + QUANTIZED_GGUF
    tensors = {
        name: _Counted(one.shape, one.type.name, one.nbytes) for name, one in header.tensors.items()
    }
    return Inspection(
        architecture=kind,
        canonical_architecture=kind,
        file_type=file_type_name(header.metadata, matrices),
        context=int(header.get("context_length", 0)),
        layers=int(header.get("block_count", 0)),
        hidden_size=int(header.get("embedding_length", 0)),
        findings=(Finding("architecture", about),),
        **_counted(short_name(str(path), path), tensors),
    )


@dataclass(frozen=True)
class _Counted:
    """A tensor as it counts: a packed one by the weights that it holds."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


def _unpacked(
    stored: Mapping[str, StoredTensor], published: Mapping[str, Any]
) -> dict[str, _Counted]:
    """Put the parts of a quantized matrix together, where its way is known."""
    settings = quantization_of(published)
    if settings is not None and quantization_method(settings) == "mlx-lm":
        return _unpacked_mlx(stored, settings)
    with suppress(UserError):
        stored = joined(stored, published)
    return {
        name: _Counted(
            one.shape,
            one.dtype,
            one.nbytes if isinstance(one, QuantizedTensor) else one.raw_bytes,
        )
        for name, one in stored.items()
    }


def _unpacked_mlx(
    stored: Mapping[str, StoredTensor], settings: Mapping[str, Any]
) -> dict[str, _Counted]:
    """Put together what mlx-lm packs; stacks of experts have three dimensions."""
    found: dict[str, _Counted] = {}
    for name, one in stored.items():
        module, _, part = name.rpartition(".")
        if f"{module}.scales" not in stored:
            found[name] = _Counted(one.shape, one.dtype, one.raw_bytes)
        elif part == "weight":
            own = settings.get(module)
            how = own if isinstance(own, dict) else settings
            bits, mode = int(how.get("bits") or 4), how.get("mode", "affine")
            parts = [stored.get(f"{module}.{each}") for each in ("weight", "scales", "biases")]
            found[name] = _Counted(
                (*one.shape[:-1], one.shape[-1] * 32 // bits),
                f"{bits}bit-g{how.get('group_size')}" if mode == "affine" else mode,
                sum(each.raw_bytes for each in parts if each is not None),
            )
    return found


def _stated(config: Mapping[str, Any], names: Sequence[str]) -> int:
    """A number that configs have under several names; 0 where one does not say."""
    return next((int(config[name]) for name in names if config.get(name)), 0)


def _counted(name: str, tensors: Mapping[str, _Counted]) -> dict[str, Any]:
    """What all inspections have that go by names."""
    types: Counter[str] = Counter()
    for tensor in tensors.values():
        types[tensor.dtype] += tensor.nbytes
    parts = tuple(_named_part(part, tensors) for part in MODEL_PARTS)
    return {
        "name": name,
        "parameters": sum(part.parameters for part in parts),
        "bytes": sum(part.bytes for part in parts),
        "types": dict(types.most_common()),
        "tied": bool(tensors) and not any(part.name == "head" and part.tensors for part in parts),
        "parts": parts,
    }


def _named_part(name: str, tensors: Mapping[str, _Counted]) -> ModelPart:
    """A part of a model of any architecture, as far as names tell; ``mlp`` has all the rest."""
    own = [tensor for each, tensor in tensors.items() if _likely_part(each, tensor) == name]
    return ModelPart(
        name=name,
        tensors=len(own),
        parameters=sum(math.prod(tensor.shape) for tensor in own),
        bytes=sum(tensor.nbytes for tensor in own),
    )


def _likely_part(name: str, tensor: _Counted) -> str:
    if "embed" in name or name.startswith("token_embd"):
        return "embedding"
    if HEAD in name or name == "output.weight":
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
