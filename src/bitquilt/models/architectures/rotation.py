"""The order of the rows that RoPE turns in pairs: half-split, or interleaved.

Within a head, half-split turns row i with row i + head_dim / 2, and interleaved turns row 2i with
row 2i + 1. Hugging Face and the canonical form are half-split; Llama 4, and GGUF files of some
families, are interleaved.
"""

from __future__ import annotations

import re

import torch

from bitquilt.models.config import ModelConfig, head_dim

_ROTATED = re.compile(r"\.self_attn\.([qk])_proj\.(weight|bias)$")


def interleaving(name: str, config: ModelConfig) -> torch.Tensor | None:
    """Row order that takes a q or k tensor from half-split to interleaved: ``rows[order]``.

    The inverse is its ``argsort``.

    Returns:
        int64 [heads * head_dim]; None for a tensor whose rows are not turned.
    """
    found = _ROTATED.search(name)
    if found is None:
        return None
    heads = config["num_attention_heads" if found[1] == "q" else "num_key_value_heads"]
    return permutation(heads, head_dim(config))


def permutation(heads: int, head_dim: int) -> torch.Tensor:
    """:func:`interleaving` by the number of heads and their width.

    Returns:
        int64 [heads * head_dim].
    """
    rows = torch.arange(heads * head_dim)
    # [heads, 2, head_dim / 2] → [heads, head_dim / 2, 2]
    return rows.reshape(heads, 2, head_dim // 2).transpose(1, 2).reshape(-1)
