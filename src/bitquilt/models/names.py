"""Names and conventions on both sides: Hugging Face module paths and GGUF tensors.

The tables are gguf-py's own (``gguf.tensor_mapping``); what llama.cpp's converter does to the
values themselves is stated here too: it interleaves the q and k rows of the ``llama`` architecture
and stores Gemma's norms plus one.
"""

from __future__ import annotations

import functools
import re

import gguf
import torch

from bitquilt.errors import UserError
from bitquilt.models.layout import BLOCK, MODEL_TYPES, OUTSIDE

GGUF_ARCHITECTURE = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
}
"""Canonical model_type → GGUF ``general.architecture``."""

_SUFFIXES = (".weight", ".bias")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_ROTATED = re.compile(r"\.self_attn\.([qk])_proj\.(weight|bias)$")


def layer_of(name: str) -> int | None:
    """The number of the block that a tensor or module is in; None for one outside the blocks."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def kind_of(module: str) -> str:
    """What a matrix is whichever block it is in: the last part of its path, e.g. ``q_proj``."""
    return module.rsplit(".", 1)[-1]


def block_path(index: int) -> str:
    """The module path of a block, with which the names of its tensors start up to a dot."""
    return f"model.layers.{index}"


def in_block(module: str) -> str:
    """The path of a module within its block, e.g. ``mlp.down_proj``; its own outside the blocks."""
    return _LAYER.split(module, 1)[-1]


def gguf_name(hf_name: str, model_type: str) -> str:
    """The GGUF name of a Hugging Face tensor, or of a module path given without its suffix.

    Raises:
        UserError: the architecture has no such tensor.
    """
    blocks = (layer_of(hf_name) or 0) + 1
    found = _name_map(model_type, blocks).get_name(hf_name, try_suffixes=_SUFFIXES)
    if found is None:
        raise UserError(f"{hf_name} has no place in a GGUF file of architecture {model_type}")
    return str(found)


def hf_name(gguf_name: str, model_type: str) -> str:
    """The inverse of :func:`gguf_name`.

    Raises:
        UserError: the architecture has no such tensor.
    """
    block = re.match(r"blk\.(\d+)\.", gguf_name)
    generic = gguf_name.replace(block[0], "blk.0.", 1) if block else gguf_name
    stem, suffix = generic, ""
    for ending in _SUFFIXES:
        if generic.endswith(ending):
            stem, suffix = generic.removesuffix(ending), ending
    module = _modules(model_type).get(stem)
    if module is None:
        raise UserError(
            f"the GGUF tensor {gguf_name} has no place in {model_type}; bitquilt reads plain dense "
            f"models of {', '.join(MODEL_TYPES)}"
        )
    if block:
        module = module.replace(".layers.0.", f".layers.{block[1]}.")
    return module + suffix


def rotated_heads(hf_name: str) -> str | None:
    """``q`` or ``k`` where RoPE turns the rows of this tensor (weight or bias), else None."""
    found = _ROTATED.search(hf_name)
    return found[1] if found else None


def interleaved(model_type: str) -> bool:
    """Whether GGUF stores the q and k rows of this architecture in interleaved order."""
    return GGUF_ARCHITECTURE[model_type] == "llama"


def permutation(heads: int, head_dim: int) -> torch.Tensor:
    """Row order that takes q or k from half-split to interleaved RoPE: ``rows[permutation]``.

    Within a head, half-split turns row i with row i + head_dim / 2 and interleaved turns row 2i
    with row 2i + 1. The inverse is its ``argsort``.

    Returns:
        int64 [heads * head_dim].
    """
    rows = torch.arange(heads * head_dim)
    # [heads, 2, head_dim / 2] → [heads, head_dim / 2, 2]
    return rows.reshape(heads, 2, head_dim // 2).transpose(1, 2).reshape(-1)


def norm_offset(model_type: str) -> float:
    """What GGUF adds to every norm weight: Gemma scales by 1 + w and llama.cpp by the sum."""
    return 1.0 if model_type == "gemma3_text" else 0.0


@functools.cache
def _name_map(model_type: str, blocks: int) -> gguf.TensorNameMap:
    architectures = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(architectures[GGUF_ARCHITECTURE[model_type]], blocks)


@functools.cache
def _modules(model_type: str) -> dict[str, str]:
    """GGUF name without suffix → module path, for everything outside the blocks and for block 0."""
    inside = (f"model.layers.0.{tensor}" for tensor in BLOCK[model_type])
    modules = {name.rpartition(".")[0] for name in (*OUTSIDE, *inside)}
    return {gguf_name(module, model_type): module for module in modules}
