"""A recipe and packed matrices → one GGUF file that stock llama.cpp runs.

Matrices are stored on their types, everything else in float32. The file is the header, then the
tensors in the checkpoint's order, each padded to 32 bytes (:mod:`bitquilt.gguf.container`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bitquilt.errors import UserError
from bitquilt.gguf.container import (
    Metadata,
    MetadataValue,
    TensorInfo,
    aligned,
    encode,
    encode_header,
    metadata_bytes,
)
from bitquilt.gguf.file_type import FILE_TYPE, file_type_of
from bitquilt.gguf.ggml_type import GgmlType
from bitquilt.gguf.header import read_header
from bitquilt.gguf.kept import kept_metadata, source_rope_factors
from bitquilt.gguf.rope import ROPE_FREQS, RopeFactors
from bitquilt.gguf.sampling import sampling_keys
from bitquilt.gguf.tokenizer import tokenizer_keys
from bitquilt.models.architectures import architecture_of
from bitquilt.models.checkpoint import EMBEDDING, Checkpoint
from bitquilt.models.gguf_config import gguf_keys, gguf_rope_factors
from bitquilt.models.licence import base_model_keys, licence_keys
from bitquilt.qtypes.qtype import Allocation, Packed, PackedSource, QuantType
from bitquilt.targets.destination import RECIPE_KEY
from bitquilt.targets.layout import (
    Layout,
    padded_text,
    qtypes_of,
    recipe_room,
    scale_bytes,
)

QUANTIZATION_VERSION = 2


def plan_gguf(checkpoint: Checkpoint, allocation: Allocation) -> Layout:
    """Compute the exact size of the file; only shapes, config and tokenizer are read.

    Without a tokenizer (a config alone) the file is counted without one.

    Raises:
        UserError: the allocation or the model has no GGUF form.
    """
    chosen = qtypes_of(checkpoint, allocation, "gguf")
    metadata = _metadata(checkpoint, chosen, "", 0)
    factors = _rope_factors(checkpoint)
    infos = _tensor_infos(checkpoint, chosen, factors)
    by_module = dict(zip(_modules(checkpoint, factors), infos, strict=True))
    tensor_bytes = {module: aligned(by_module[module].nbytes) for module in chosen}
    start = len(encode_header(metadata, infos))
    fixed = start + sum(aligned(i.nbytes) for m, i in by_module.items() if m not in chosen)
    total = fixed + sum(tensor_bytes.values())
    tokenizer = {k: v for k, v in metadata.items() if k.startswith("tokenizer.")}
    inside = {m: i.nbytes for m, i in by_module.items() if m in chosen and m != EMBEDDING}
    scales = sum(scale_bytes(chosen[m], *checkpoint.matrices[m]) for m in inside)
    parts = {
        "tokenizer": metadata_bytes(tokenizer),
        "metadata": start - metadata_bytes(tokenizer),
        "norms": sum(i.nbytes for m, i in by_module.items() if m not in chosen),
        "embedding": by_module[EMBEDDING].nbytes,
        "codes": sum(inside.values()) - scales,
        "scales": scales,
    }
    breakdown = {**parts, "padding": total - sum(parts.values())}
    return Layout(total, tensor_bytes, fixed, breakdown, checkpoint.weights)


def write_gguf(
    checkpoint: Checkpoint,
    allocation: Allocation,
    packed: PackedSource,
    path: Path,
    recipe_json: str,
    padding: int,
) -> None:
    """Write the file, the header first and then one tensor at a time; see :meth:`Target.write`."""
    if checkpoint.tokenizer_dir is None and checkpoint.gguf_source is None:
        raise UserError(
            f"{checkpoint.name} has no tokenizer, which a GGUF file needs; "
            "put tokenizer.json beside config.json"
        )
    chosen = qtypes_of(checkpoint, allocation, "gguf")
    factors = _rope_factors(checkpoint)
    infos = _tensor_infos(checkpoint, chosen, factors)
    with open(path, "wb") as file:
        file.write(encode_header(_metadata(checkpoint, chosen, recipe_json, padding), infos))
        for info, data in zip(
            infos, _tensor_data(checkpoint, chosen, packed, factors), strict=True
        ):
            _check_size(info, data)
            file.write(data.tobytes())
            file.write(bytes(aligned(info.nbytes) - info.nbytes))
        expected = plan_gguf(checkpoint, allocation).total_bytes + padding
        assert file.tell() == expected, f"{file.tell()} bytes written, {expected} planned"


def check_gguf(
    path: Path, checkpoint: Checkpoint, allocation: Allocation, packed: PackedSource
) -> None:
    """Reopen a written file and compare every tensor; see :meth:`Target.check`."""
    chosen = qtypes_of(checkpoint, allocation, "gguf")
    factors = _rope_factors(checkpoint)
    infos = _tensor_infos(checkpoint, chosen, factors)
    found = read_header(path).tensors
    if odd := sorted(set(found) ^ {info.name for info in infos}):
        raise UserError(
            f"{path}: the tensor {odd[0]} is missing or unexpected; write the file again"
        )
    stored = np.memmap(path, np.uint8, "r")
    for info, meant in zip(infos, _tensor_data(checkpoint, chosen, packed, factors), strict=True):
        tensor = found[info.name]
        if (tensor.shape, tensor.type) != (info.shape, info.type):
            raise UserError(f"{path}: {info.name} has another shape or type than planned")
        if stored[tensor.offset : tensor.offset + tensor.nbytes].tobytes() != meant.tobytes():
            raise UserError(f"{path}: the bytes of {info.name} differ from what was written")


def _metadata(
    checkpoint: Checkpoint, chosen: dict[str, QuantType], recipe_json: str, padding: int
) -> Metadata:
    """Return all pairs of the header; its length is the same for every allocation and recipe."""
    pairs = model_metadata(checkpoint)
    pairs[FILE_TYPE] = encode(_file_type(checkpoint, chosen))
    pairs["general.quantization_version"] = encode(QUANTIZATION_VERSION)
    room = recipe_room(checkpoint) + padding
    return {**pairs, RECIPE_KEY: encode(padded_text(recipe_json, room, "the recipe"))}


def model_metadata(checkpoint: Checkpoint) -> Metadata:
    """Describe the model itself: as a GGUF source does, else anew."""
    if checkpoint.gguf_source is not None:
        missing = {**base_model_keys(checkpoint), **licence_keys(checkpoint)}
        added = {key: encode(value) for key, value in missing.items()}
        return kept_metadata(checkpoint.gguf_source) | added
    keys: dict[str, MetadataValue] = {
        "general.architecture": architecture_of(checkpoint.config).gguf_architecture,
        "general.type": "model",
        "general.name": checkpoint.name,
        **base_model_keys(checkpoint),
        **gguf_keys(checkpoint.config),
        **sampling_keys(checkpoint.generation_config),
    }
    if checkpoint.tokenizer_dir is not None:
        keys |= licence_keys(checkpoint)
        keys |= tokenizer_keys(
            checkpoint.tokenizer_dir,
            checkpoint.config,
            checkpoint.generation_config,
            checkpoint.chat_template,
            checkpoint.named_templates,
        )
    return {key: encode(value) for key, value in keys.items()}


def _file_type(checkpoint: Checkpoint, chosen: dict[str, QuantType]) -> int:
    """Return the file type of most weights' type; llama.cpp only prints it."""
    weights: Counter[str] = Counter()
    for module, qtype in chosen.items():
        rows, columns = checkpoint.matrices[module]
        weights[qtype.name] += rows * columns
    return file_type_of(weights.most_common(1)[0][0])


def _modules(checkpoint: Checkpoint, factors: RopeFactors | None) -> list[str]:
    """Keys of the file's tensors in order: module paths of matrices, names of everything else."""
    keys = [
        name.removesuffix(".weight") if len(shape) == 2 else name
        for name, shape in checkpoint.shapes.items()
    ]
    return keys if factors is None else [*keys, ROPE_FREQS]


def _tensor_infos(
    checkpoint: Checkpoint, chosen: dict[str, QuantType], factors: RopeFactors | None
) -> list[TensorInfo]:
    family = architecture_of(checkpoint.config)
    infos = []
    for name, shape in checkpoint.shapes.items():
        gguf_name = family.gguf_name(name)
        qtype = chosen.get(name.removesuffix(".weight"))
        if qtype is None:
            nbytes = 4 * int(np.prod(shape))
            infos.append(TensorInfo(gguf_name, shape, GgmlType.F32, nbytes))
        else:
            kind = GgmlType[qtype.name]
            infos.append(TensorInfo(gguf_name, shape, kind, qtype.nbytes(*shape)))
    if factors is not None:
        kind = GgmlType.F32
        infos.append(TensorInfo(ROPE_FREQS, factors.shape, kind, factors.nbytes))
    return infos


def _tensor_data(
    checkpoint: Checkpoint,
    chosen: dict[str, QuantType],
    packed: PackedSource,
    factors: RopeFactors | None,
) -> Iterator[npt.NDArray[Any]]:
    """Yield the bytes of every tensor in file order, as arrays of the stored type."""
    family = architecture_of(checkpoint.config)
    for name in checkpoint.shapes:
        module = name.removesuffix(".weight")
        order = family.gguf_rows(name, checkpoint.config)
        if module in chosen:
            rows = packed_rows(packed(module, chosen[module].name))
        else:
            rows = checkpoint.load(name) + family.gguf_offset(name)
        yield (rows if order is None else rows[order]).numpy()
    if factors is not None:
        yield factors


def packed_rows(parts: Packed) -> torch.Tensor:
    """Return a packed matrix as the bytes of its rows, uint8 [R, row_bytes]."""
    if "data" in parts:
        return parts["data"].cpu()
    return parts["weight"].cpu().contiguous().view(torch.uint8)


def _rope_factors(checkpoint: Checkpoint) -> RopeFactors | None:
    if checkpoint.gguf_source is not None:
        return source_rope_factors(checkpoint.gguf_source)
    return gguf_rope_factors(checkpoint.config)


def _check_size(info: TensorInfo, data: npt.NDArray[Any]) -> None:
    if data.nbytes != info.nbytes:
        raise ValueError(f"{info.name}: {data.nbytes} bytes packed, {info.nbytes} expected")
