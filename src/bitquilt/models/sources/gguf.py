"""A GGUF file as a checkpoint: dequantized on reading, back in Hugging Face's conventions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from bitquilt.errors import UserError
from bitquilt.gguf.container import GgufTensor
from bitquilt.gguf.dequantize import dequantize
from bitquilt.gguf.file_type import file_type_name
from bitquilt.gguf.header import GgufHeader, read_header
from bitquilt.gguf.metadata import generation_config
from bitquilt.gguf.tokenizer import named_templates, tokenizer_directory
from bitquilt.models import canonical
from bitquilt.models.architectures import architecture_of
from bitquilt.models.audit import audit, audit_template
from bitquilt.models.chat_template import default_template
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.fingerprint import checkpoint_fingerprint
from bitquilt.models.gguf_config import config_of, hf_tensors
from bitquilt.models.sources.resolve import short_name
from bitquilt.models.sources.tensors import (
    about_quantization,
    bytes_by_type,
    checked,
    rows_to_look_at,
)


def open_gguf(path: Path) -> Checkpoint:
    """Read a GGUF file's header and tokenizer; tensors are dequantized when asked for.

    Raises:
        UserError: the file is damaged, is not a whole model, is of an unknown architecture, or has
            a tokenizer of a kind that cannot be rebuilt.
    """
    header = read_header(path)
    original = config_of(header)
    form = canonical.canonical(original)
    tensors = hf_tensors(header)
    _compare(header, form.shapes, tensors)
    nbytes = {name: tensors[name].nbytes for name in form.shapes}
    dtypes = {name: tensors[name].type.name for name in form.shapes}
    matrix_types = [dtypes[name] for name, shape in form.shapes.items() if len(shape) == 2]
    stated = header.metadata.get("tokenizer.chat_template")
    template = default_template(stated)
    own_fingerprint = checkpoint_fingerprint(form.config, form.shapes, [path])
    return Checkpoint(
        name=short_name(str(path), path),
        config=form.config,
        original_config=original,
        shapes=form.shapes,
        reader=_reader(header, form.shapes),
        source_types=bytes_by_type(dtypes, nbytes),
        file_type=file_type_name(header.metadata, matrix_types),
        tokenizer_dir=tokenizer_directory(header, own_fingerprint),
        chat_template=template,
        named_templates=named_templates(header.metadata),
        generation_config=generation_config(header),
        findings=(
            *audit(original, form.config, form.shapes),
            *audit_template(template, "the GGUF header" if stated else None),
            *about_quantization(dtypes),
        ),
        fingerprint=own_fingerprint,
        gguf_source=path,
        gguf_general={k: v for k, v in header.metadata.items() if k.startswith("general.")},
        source_bytes=nbytes,
        tensor_types=dtypes,
        sampler=_sampler(header),
    )


class GgufWeights(Mapping[str, torch.Tensor]):
    """The weights of a GGUF file by canonical name, float32, dequantized when asked for.

    What llama.cpp's converter did is undone: q and k are back in half-split order, Gemma's norms
    back to w.
    """

    def __init__(
        self,
        header: GgufHeader,
        decode: Callable[[Path, GgufTensor], torch.Tensor] = dequantize,
    ) -> None:
        self._path, self._decode = header.path, decode
        self._config = config_of(header)
        self._family = architecture_of(self._config)
        self._tensors = hf_tensors(header)

    def __getitem__(self, name: str) -> torch.Tensor:
        weight = self._decode(self._path, self._tensors[name])
        order = self._family.gguf_rows(name, self._config)
        if order is not None:
            weight = weight[order.argsort()]
        offset = self._family.gguf_offset(name)
        return weight - offset if offset else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _reader(
    header: GgufHeader, shapes: dict[str, tuple[int, ...]]
) -> Callable[[str], torch.Tensor]:
    """As :class:`GgufWeights`, checked for shape and for NaN or infinity."""
    weights = GgufWeights(header)

    def read(name: str) -> torch.Tensor:
        return checked(weights[name], name, shapes[name], header.path)

    return read


def _sampler(header: GgufHeader) -> Callable[[str], torch.Tensor]:
    """Some rows of a matrix, in the order of the file."""
    tensors = hf_tensors(header)

    def read(name: str) -> torch.Tensor:
        rows = rows_to_look_at(tensors[name].shape[0])
        return dequantize(header.path, tensors[name], rows)

    return read


def _compare(
    header: GgufHeader, shapes: dict[str, tuple[int, ...]], tensors: dict[str, GgufTensor]
) -> None:
    missing = shapes.keys() - tensors.keys()
    extra = tensors.keys() - shapes.keys()
    if missing or extra:
        kind, example = ("lacks", min(missing)) if missing else ("has an unexpected", min(extra))
        raise UserError(
            f"{header.path} {kind} {example}, which contradicts its own metadata; download it again"
        )
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{name} is {list(tensors[name].shape)} in {header.path}, but its metadata asks "
                f"for {list(shape)}; download it again"
            )
