"""A GGUF file as a checkpoint: dequantized on reading, back in Hugging Face's conventions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch

from bitquilt.errors import UserError
from bitquilt.gguf.container_read import GgufTensor
from bitquilt.gguf.metadata_read import (
    GgufHeader,
    config_of,
    generation_config,
    hf_tensors,
    model_name,
    read_header,
)
from bitquilt.gguf.tokenizer_read import tokenizer_directory
from bitquilt.models import canonical, layout, names
from bitquilt.models.audit import audit, audit_template
from bitquilt.models.chat_template import default_template
from bitquilt.models.checkpoint import Checkpoint, Finding
from bitquilt.models.fingerprint import fingerprint
from bitquilt.models.sources.tensors import checked, dominant_dtype

_CHUNK_BYTES = 64 << 20
_PLAIN = ("F32", "F16", "BF16")


def open_gguf(path: Path) -> Checkpoint:
    """Read a GGUF file's header and tokenizer; tensors are dequantized when asked for.

    Raises:
        UserError: it is damaged, no whole model, of an unknown architecture, or its tokenizer is of
            a kind that cannot be rebuilt.
    """
    header = read_header(path)
    original = config_of(header)
    form = canonical.canonical(original)
    tensors = hf_tensors(header)
    _compare(header, form.shapes, tensors)
    nbytes = {name: tensors[name].nbytes for name in form.shapes}
    dtypes = {name: tensors[name].type.name for name in form.shapes}
    stated = header.metadata.get("tokenizer.chat_template")
    template = default_template(stated)
    print_of_source = fingerprint(form.config, form.shapes, [path])
    return Checkpoint(
        name=model_name(path),
        config=form.config,
        original_config=original,
        shapes=form.shapes,
        reader=_reader(header, form.shapes, tensors),
        source_dtype=dominant_dtype(dtypes, nbytes),
        tokenizer_dir=tokenizer_directory(header, print_of_source),
        chat_template=template,
        generation_config=generation_config(header),
        findings=(
            *audit(original, form.config, form.shapes),
            *audit_template(template, "the GGUF header" if stated else None),
            *_quantized(dtypes),
        ),
        fingerprint=print_of_source,
        gguf_source=path,
        source_bytes=nbytes,
    )


def dequantize(path: Path, tensor: GgufTensor) -> torch.Tensor:
    """One tensor as float32, through row chunks so that memory stays near its float32 size.

    Raises:
        UserError: gguf-py has no decoder for its type.
    """
    columns = tensor.shape[-1]
    rows = math.prod(tensor.shape[:-1])
    row_bytes = tensor.nbytes // rows
    packed = np.memmap(path, np.uint8, "r", tensor.offset, (rows, row_bytes))
    result = np.empty((rows, columns), np.float32)
    step = max(1, _CHUNK_BYTES // (4 * columns))
    for start in range(0, rows, step):
        chunk = np.ascontiguousarray(packed[start : start + step])
        try:
            result[start : start + step] = gguf.dequantize(chunk, tensor.type)
        except NotImplementedError as error:
            raise UserError(
                f"{path} stores tensors as {tensor.type.name}, which gguf-py cannot decode; "
                "give another quantization of this model"
            ) from error
    return torch.from_numpy(result.reshape(tensor.shape))


def _reader(
    header: GgufHeader, shapes: dict[str, tuple[int, ...]], tensors: dict[str, GgufTensor]
) -> Callable[[str], torch.Tensor]:
    """Undo what llama.cpp's converter did: interleaved q and k rows, Gemma's norms plus one."""
    config = config_of(header)
    model_type = config["model_type"]
    offset = names.norm_offset(model_type)

    def read(name: str) -> torch.Tensor:
        tensor = checked(dequantize(header.path, tensors[name]), name, shapes[name], header.path)
        turned = names.rotated_heads(name)
        if turned and names.interleaved(model_type):
            heads = config["num_attention_heads" if turned == "q" else "num_key_value_heads"]
            tensor = tensor[names.permutation(heads, layout.head_dim(config)).argsort()]
        return tensor - offset if offset and name.endswith("norm.weight") else tensor

    return read


def _compare(
    header: GgufHeader, shapes: dict[str, tuple[int, ...]], tensors: dict[str, GgufTensor]
) -> None:
    missing = shapes.keys() - tensors.keys()
    extra = tensors.keys() - shapes.keys()
    if missing or extra:
        kind, example = ("lacks", min(missing)) if missing else ("has an unexpected", min(extra))
        raise UserError(
            f"{header.path} {kind} {example}, against its own metadata; download it again"
        )
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{name} is {list(tensors[name].shape)} in {header.path}, but its metadata asks "
                f"for {list(shape)}; download it again"
            )


def _quantized(dtypes: dict[str, str]) -> list[Finding]:
    """What the matrices are stored as, if that has already cost accuracy."""
    lossy = sorted(set(dtypes.values()) - set(_PLAIN))
    if not lossy:
        return []
    return [
        Finding(
            "quantization",
            f"The source is quantized already ({', '.join(lossy)}); whatever is made from it is "
            "measured against that, and the original checkpoint would be a better start.",
        )
    ]
