"""A recipe and packed matrices → one MLX model directory that stock mlx-lm loads."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from bitquilt import qtypes
from bitquilt.errors import UserError
from bitquilt.models.chat_template import DEFAULT
from bitquilt.models.checkpoint import EMBEDDING, Checkpoint
from bitquilt.models.licence import terms_of
from bitquilt.qtypes.qtype import Allocation, PackedSource, QuantType
from bitquilt.runtime.files import read_json
from bitquilt.targets.layout import (
    Layout,
    padded_text,
    qtypes_of,
    recipe_room,
    scale_bytes,
)
from bitquilt.targets.mlx.layout import (
    ITEM_SIZES,
    LANGUAGE_MODEL,
    Part,
    config_text,
    file_parts,
    is_wrapped,
    norm_dtype,
    norm_slack,
    norm_values,
    offsets_of,
    parts_of,
    prefix_of,
    qtype_name,
    safetensors_header,
)
from bitquilt.targets.mlx.vision import image_files, vision_tower_bytes, write_vision_tower

WEIGHTS_FILE = "model.safetensors"
RECIPE_FILE = "recipe.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
COPIED_FILES = (
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
_DTYPES = {torch.uint32: "U32", torch.bfloat16: "BF16", torch.float32: "F32", torch.uint8: "U8"}


def plan_mlx(checkpoint: Checkpoint, allocation: Allocation) -> Layout:
    """Compute the exact size of the directory; only shapes, config and tokenizer are read.

    Raises:
        UserError: the allocation has no MLX form.
    """
    chosen = qtypes_of(checkpoint, allocation, "mlx")
    matrices = checkpoint.matrices
    tensor_bytes = {m: qtype.nbytes(*matrices[m]) for m, qtype in chosen.items()}
    slack = norm_slack(checkpoint, chosen)
    norms = ITEM_SIZES["F32"] * norm_values(checkpoint) - slack
    texts = _texts(checkpoint, chosen, "", 0)
    described = sum(len(text.encode()) for text in texts.values())
    header = len(safetensors_header(checkpoint, chosen))
    copied = sum(len(raw) for raw in _copied(checkpoint).values())
    inside = [module for module in chosen if module != EMBEDDING]
    scales = sum(scale_bytes(chosen[m], *matrices[m]) for m in inside)
    vision = vision_tower_bytes(checkpoint)
    fixed = copied + described + header + norms + vision
    breakdown = {
        "tokenizer": copied,
        "metadata": described + header - slack,
        "norms": norms,
        **({"vision": vision} if vision else {}),
        "embedding": tensor_bytes[EMBEDDING],
        "codes": sum(tensor_bytes[m] for m in inside) - scales,
        "scales": scales,
        "padding": slack,
    }
    total = fixed + sum(tensor_bytes.values())
    return Layout(total, tensor_bytes, fixed, breakdown, checkpoint.weights)


def write_mlx(
    checkpoint: Checkpoint,
    allocation: Allocation,
    packed: PackedSource,
    directory: Path,
    recipe_json: str,
    padding: int,
) -> None:
    """Write the directory, one matrix in memory at a time; see :meth:`Target.write`."""
    if checkpoint.tokenizer_dir is None:
        raise UserError(
            f"{checkpoint.name} has no tokenizer, which an MLX model needs; "
            "put tokenizer.json beside config.json"
        )
    chosen = qtypes_of(checkpoint, allocation, "mlx")
    texts = _texts(checkpoint, chosen, recipe_json, padding)
    directory.mkdir()
    for name, raw in _copied(checkpoint).items():
        (directory / name).write_bytes(raw)
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8", newline="")
    with open(directory / WEIGHTS_FILE, "wb") as file:
        _write_weights(file, checkpoint, chosen, packed)
    if is_wrapped(checkpoint) and checkpoint.vision is not None:
        write_vision_tower(checkpoint.vision, checkpoint.original_config, directory)
    size = sum(path.stat().st_size for path in directory.iterdir())
    expected = plan_mlx(checkpoint, allocation).total_bytes + padding
    assert size == expected, f"{size} bytes written, {expected} planned"


def check_mlx(
    directory: Path, checkpoint: Checkpoint, allocation: Allocation, packed: PackedSource
) -> None:
    """Reopen a written directory and compare every tensor; see :meth:`Target.check`."""
    chosen = qtypes_of(checkpoint, allocation, "mlx")
    meant = {part.name: part for part in file_parts(checkpoint, chosen)}
    path = directory / WEIGHTS_FILE
    with _open(path) as file:
        if odd := sorted(set(file.keys()) ^ set(meant)):
            raise UserError(f"{path}: {odd[0]} is missing or unexpected; write the file again")
        for name, tensor in _tensors(checkpoint, chosen, packed):
            found = file.get_tensor(name)
            if (_DTYPES.get(found.dtype), tuple(found.shape)) != (
                meant[name].dtype,
                meant[name].shape,
            ):
                raise UserError(f"{path}: {name} has another shape or dtype than planned")
            if _raw(found) != _raw(tensor):
                raise UserError(f"{path}: the bytes of {name} differ from what was written")


def data_bytes(directory: Path) -> int:
    """Count the bytes of model.safetensors that are no header, which has its length before it."""
    path = directory / WEIGHTS_FILE
    with open(path, "rb") as file:
        (header,) = struct.unpack("<Q", file.read(8))
    return path.stat().st_size - 8 - int(header)


class MlxWeights(Mapping[str, torch.Tensor]):
    """The weights of an MLX directory by Hugging Face name, dequantized to float32 when asked."""

    def __init__(self, directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text("utf-8"))
        self._quantization: dict[str, Any] = config.get("quantization", {})
        self._file = _open(directory / WEIGHTS_FILE)
        parts = self._file.keys()
        inside = [name for name in parts if not name.endswith((".scales", ".biases"))]
        self._names = {name.removeprefix(LANGUAGE_MODEL): name for name in inside}
        self._parts = set(parts)

    def __getitem__(self, name: str) -> torch.Tensor:
        name = self._names.get(name, name)
        module = name.removesuffix(".weight")
        if f"{module}.scales" not in self._parts:
            stored: torch.Tensor = self._file.get_tensor(name)
            return stored.float()
        kinds = ("weight", "scales", "biases")
        present = [kind for kind in kinds if f"{module}.{kind}" in self._parts]
        stored_parts = {kind: self._file.get_tensor(f"{module}.{kind}") for kind in present}
        packed = {kind: part.flatten(0, -2) for kind, part in stored_parts.items()}  # of a stack
        qtype = qtypes.get(qtype_name(self._quantization.get(module, self._quantization)))
        return qtype.dequantize(packed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _texts(
    checkpoint: Checkpoint, chosen: dict[str, QuantType], recipe_json: str, padding: int
) -> dict[str, str]:
    """Return the files that are written rather than copied: name → content."""
    recipe = padded_text(recipe_json, recipe_room(checkpoint) + padding, "the recipe")
    texts = {"config.json": config_text(checkpoint, chosen), RECIPE_FILE: recipe + "\n"}
    if checkpoint.named_templates:
        texts[TOKENIZER_CONFIG] = _with_templates(checkpoint)
    elif checkpoint.chat_template is not None:
        texts["chat_template.jinja"] = checkpoint.chat_template
    if checkpoint.generation_config:
        generation = json.dumps(checkpoint.generation_config, indent=2, sort_keys=True)
        texts["generation_config.json"] = generation + "\n"
    return texts


def _with_templates(checkpoint: Checkpoint) -> str:
    """The tokenizer's config with several chat templates, as transformers reads them there."""
    assert checkpoint.tokenizer_dir is not None
    path = checkpoint.tokenizer_dir / TOKENIZER_CONFIG
    config = read_json(path) if path.exists() else {}
    default = {} if checkpoint.chat_template is None else {DEFAULT: checkpoint.chat_template}
    named = {**default, **checkpoint.named_templates}
    entries = [{"name": name, "template": source} for name, source in named.items()]
    return json.dumps(config | {"chat_template": entries}, indent=2, ensure_ascii=False) + "\n"


def _copied(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the tokenizer's files and those that state the licence: name → content."""
    source = checkpoint.tokenizer_dir
    if source is None:
        return {}
    written = {TOKENIZER_CONFIG} if checkpoint.named_templates else set()
    there = [name for name in COPIED_FILES if name not in written and (source / name).exists()]
    tokenizer = {name: (source / name).read_bytes() for name in there}
    seeing = checkpoint.vision if is_wrapped(checkpoint) else None
    images = {} if seeing is None else image_files(seeing)
    return {**tokenizer, **images, **terms_of(checkpoint).documents()}


def _write_weights(
    file: BinaryIO,
    checkpoint: Checkpoint,
    chosen: dict[str, QuantType],
    packed: PackedSource,
) -> None:
    """Write each tensor at its place; the parts of one matrix lie apart, sorted by item size."""
    parts = file_parts(checkpoint, chosen)
    by_name = {part.name: part for part in parts}
    header = safetensors_header(checkpoint, chosen)
    offsets = offsets_of(parts)
    file.write(header)
    for name, tensor in _tensors(checkpoint, chosen, packed):
        _check_part(by_name[name], tensor)
        file.seek(len(header) + offsets[name])
        file.write(_raw(tensor))


def _tensors(
    checkpoint: Checkpoint, chosen: dict[str, QuantType], packed: PackedSource
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of the file as it is stored, matrix by matrix."""
    prefix = prefix_of(checkpoint)
    for name in checkpoint.shapes:
        module = name.removesuffix(".weight")
        if module not in chosen:
            stored = torch.float32 if norm_dtype(chosen) == "F32" else torch.bfloat16
            yield prefix + name, checkpoint.load(name).to(stored)
            continue
        parts = packed(module, chosen[module].name)
        for part in parts_of(prefix + module, chosen[module], *checkpoint.matrices[module]):
            yield part.name, parts[part.name.rpartition(".")[2]].cpu()


def _check_part(part: Part, tensor: torch.Tensor) -> None:
    if (part.dtype, part.shape) != (_DTYPES.get(tensor.dtype), tuple(tensor.shape)):
        raise ValueError(f"{part} expected, {tensor.dtype} {tuple(tensor.shape)} packed")


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}; write it again") from error
