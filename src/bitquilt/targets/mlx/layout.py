"""How an MLX model directory is laid out: parts of matrices, safetensors header, config.json.

A safetensors file is the header's length as u64, the header in JSON (trailing spaces allowed),
then the tensors without gaps. Source: the safetensors format; mlx-lm's ``load_model`` for names
and for the ``quantization`` entry of config.json.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bitquilt.models.canonical import QUANTIZED
from bitquilt.models.checkpoint import EMBEDDING, Checkpoint
from bitquilt.models.sources.hugging_face import VISION_PARTS
from bitquilt.qtypes.floats import Float
from bitquilt.qtypes.mlx_affine import Affine
from bitquilt.qtypes.qtype import QuantType
from bitquilt.targets.layout import padded_text

ITEM_SIZES = {"I64": 8, "F32": 4, "U32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1}
WORST_ENTRY = {"group_size": 128, "bits": 8, "mode": "affine"}
HEADER_ALIGNMENT = 8
LANGUAGE_MODEL = "language_model."
"""What stands before the names of a language model in its wrapper."""
_TOP_LEVEL = ("vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
_WRAPPED = frozenset({"mistral3"})
"""Wrappers that mlx-lm and mlx-vlm both read. Of Gemma 3's mlx-vlm asks for a head beside the
embedding that it is tied to (docs/decisions/images.md)."""


@dataclass(frozen=True)
class Part:
    """One tensor of model.safetensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def item_size(self) -> int:
        """Bytes of one of its numbers; in the order of a file, wide ones stand first."""
        return ITEM_SIZES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        size = self.item_size
        for length in self.shape:
            size *= length
        return size


def parts_of(module: str, qtype: QuantType, rows: int, columns: int) -> list[Part]:
    """Return the tensors that mlx-lm expects of a matrix on a type."""
    groups = columns // qtype.block
    if isinstance(qtype, Float):
        return [Part(f"{module}.weight", qtype.name, (rows, columns))]
    if isinstance(qtype, Affine):
        return [
            Part(f"{module}.weight", "U32", (rows, columns * qtype.width // 32)),
            Part(f"{module}.scales", "BF16", (rows, groups)),
            Part(f"{module}.biases", "BF16", (rows, groups)),
        ]
    return [
        Part(f"{module}.weight", "U32", (rows, columns * _code_bits(qtype) // 32)),
        Part(f"{module}.scales", "U8", (rows, groups)),
    ]


def is_wrapped(checkpoint: Checkpoint) -> bool:
    """Tell whether a directory is to have the wrapper of a model that sees."""
    sees = checkpoint.vision is not None or not checkpoint.tensor_types  # a config alone
    return sees and has_wrapper(checkpoint.original_config)


def has_wrapper(config: Mapping[str, Any]) -> bool:
    """Tell whether a published config is of a wrapper that mlx-lm and mlx-vlm both read."""
    return config.get("model_type") in _WRAPPED and bool(config.get("vision_config"))


def is_of_vision(name: str) -> bool:
    """Tell whether a tensor's name is of what sees, and not of the language model."""
    return name.startswith(VISION_PARTS)


def prefix_of(checkpoint: Checkpoint) -> str:
    """Return what stands before the names of all tensors and modules."""
    return LANGUAGE_MODEL if is_wrapped(checkpoint) else ""


def wrapped_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the config as engines read it: the language model's, in its wrapper if it has one."""
    if not is_wrapped(checkpoint):
        return checkpoint.config
    published = checkpoint.original_config
    text = {**published.get("text_config", {}), **checkpoint.config}
    both = {**published, "text_config": text}
    both |= {name: checkpoint.config[name] for name in _TOP_LEVEL if name in checkpoint.config}
    for part in (both, text):
        for field in QUANTIZED:
            part.pop(field, None)
    return both


def norm_dtype(chosen: Mapping[str, QuantType]) -> str:
    """Return the dtype of norms and biases: the activations', which the embedding decides.

    See docs/decisions/mlx-activations.md.
    """
    return "F32" if chosen[EMBEDDING].name == "F32" else "BF16"


def norm_values(checkpoint: Checkpoint) -> int:
    """Count the numbers in norms and biases."""
    return sum(shape[0] for shape in checkpoint.shapes.values() if len(shape) == 1)


def norm_slack(checkpoint: Checkpoint, chosen: Mapping[str, QuantType]) -> int:
    """Count the bytes that norms and biases save against float32; spaces make up for them."""
    saved = ITEM_SIZES["F32"] - ITEM_SIZES[norm_dtype(chosen)]
    return saved * norm_values(checkpoint)


def file_parts(checkpoint: Checkpoint, chosen: Mapping[str, QuantType]) -> list[Part]:
    """List every tensor in file order: wide items first, so that all are aligned without gaps."""
    parts: list[Part] = []
    prefix = prefix_of(checkpoint)
    for name, shape in checkpoint.shapes.items():
        module = name.removesuffix(".weight")
        if module in chosen:
            parts += parts_of(prefix + module, chosen[module], shape[0], shape[1])
        else:
            parts.append(Part(prefix + name, norm_dtype(chosen), shape))
    return sorted(parts, key=lambda part: -ITEM_SIZES[part.dtype])


def offsets_of(parts: Iterable[Part]) -> dict[str, int]:
    """Part name → first byte, counted from the end of the header."""
    offsets, position = {}, 0
    for part in parts:
        offsets[part.name] = position
        position += part.nbytes
    return offsets


def safetensors_header(checkpoint: Checkpoint, chosen: Mapping[str, QuantType]) -> bytes:
    """Return the header, with spaces so that it and the norms always take as much together."""
    parts = file_parts(checkpoint, chosen)
    text = header_text(parts, offsets_of(parts))
    room = _header_room(checkpoint) + norm_slack(checkpoint, chosen)
    padded = padded_text(text, room, "the header").encode()
    return struct.pack("<Q", len(padded)) + padded


def header_text(parts: Iterable[Part], offsets: Mapping[str, int]) -> str:
    """Return the header of parts that begin at these bytes, counted from its end."""
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    for part in parts:
        start = offsets[part.name]
        entries[part.name] = {
            "dtype": part.dtype,
            "shape": list(part.shape),
            "data_offsets": [start, start + part.nbytes],
        }
    return json.dumps(entries, separators=(",", ":"))


def _header_room(checkpoint: Checkpoint) -> int:
    """Length of the longest header: every matrix in three parts, every number at its longest."""
    worst = []
    for name, shape in checkpoint.shapes.items():
        parts = ("weight", "scales", "biases") if len(shape) == 2 else ("weight",)
        stem = prefix_of(checkpoint) + name.rpartition(".")[0]
        worst += [Part(f"{stem}.{part}", "BF16", shape) for part in parts]
    end = sum(ITEM_SIZES["F32"] * part.nbytes for part in worst)
    text = header_text(worst, {part.name: end for part in worst})
    return -(-len(text) // HEADER_ALIGNMENT) * HEADER_ALIGNMENT


def config_text(checkpoint: Checkpoint, chosen: Mapping[str, QuantType]) -> str:
    """Return config.json, filled with spaces to the length that no allocation exceeds."""
    config, prefix = wrapped_config(checkpoint), prefix_of(checkpoint)
    entries = {prefix + module: quantization_entry(qtype) for module, qtype in chosen.items()}
    longest = _dump(config, dict.fromkeys(entries, WORST_ENTRY), WORST_ENTRY)
    packed = [tuple(entry.items()) for entry in entries.values() if isinstance(entry, dict)]
    text = json.dumps(config, indent=2) + "\n"
    if packed:
        text = _dump(config, entries, dict(Counter(packed).most_common(1)[0][0]))
    return padded_text(text, len(longest.encode()), "config.json")


def _dump(config: dict[str, Any], entries: Mapping[str, Any], default: dict[str, Any]) -> str:
    quantization = {**default, **entries}
    both = {"quantization": quantization, "quantization_config": quantization}
    return json.dumps({**config, **both}, indent=2) + "\n"


def quantization_entry(qtype: QuantType) -> dict[str, Any] | bool:
    """Return config.json's entry of a module on a type; False means that it is not quantized."""
    if isinstance(qtype, Float):
        return False
    if isinstance(qtype, Affine):
        return {"group_size": qtype.block, "bits": qtype.width, "mode": "affine"}
    return {"group_size": qtype.block, "bits": _code_bits(qtype), "mode": qtype.name}


def _code_bits(qtype: QuantType) -> int:
    """Return the bits of a code of floats under a shared scale, which has less than one each."""
    return qtype.block_bits // qtype.block


def qtype_name(entry: dict[str, Any]) -> str:
    """Undo :func:`quantization_entry`: return the type of a quantized module's entry."""
    if entry.get("mode", "affine") == "affine":
        return f"{entry['bits']}bit-g{entry['group_size']}"
    return str(entry["mode"])
