"""Tiny random checkpoints of types that bitquilt has no tables of, for llama.cpp's converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bitquilt.bases.converter import find_converter
from tests.factories import VOCABULARY, tiny_tokenizer

needs_converter = pytest.mark.skipif(
    find_converter() is None, reason="llama.cpp's converter is not installed; see CONTRIBUTING.md"
)

_MIXTURE = {
    **{"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 64, "head_dim": 64},
    "norm_topk_prob": True,  # as published ones have it; llama.cpp reads no such key of qwen3moe
}
TYPES: dict[str, dict[str, Any]] = {
    "granite": {},
    "smollm3": {"num_hidden_layers": 4},
    "olmo2": {},
    "qwen3_moe": _MIXTURE,
    "gpt_oss": {
        **{"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 64},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "lfm2": {
        **{"block_ff_dim": 192, "block_auto_adjust_ff_dim": False, "tie_word_embeddings": True},
        "layer_types": ["conv", "full_attention"],
    },
}
"""model_type → fields of its config, beside those that all have."""


def unknown_checkpoint(
    tmp_path: Path, kind: str, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """Write a random checkpoint with its tokenizer under ``tmp_path`` and return its directory."""
    shared = {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        "bos_token_id": VOCABULARY - 6,
        "eos_token_id": VOCABULARY - 5,
        "pad_token_id": VOCABULARY - 5,
    }
    config = AutoConfig.for_model(kind, **{**shared, **TYPES[kind]})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "conv" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(dtype).save_pretrained(tmp_path / kind)
    tiny_tokenizer().save_pretrained(tmp_path / kind)
    return tmp_path / kind
