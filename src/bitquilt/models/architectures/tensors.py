"""The tensors of a dense decoder by both of their names, and the letters of their dimensions.

Letters: V vocabulary, D model width, Q query rows (heads * head_dim), K key rows
(KV heads * head_dim), H head_dim, M MLP width.

A family's block is a merge of these tables; its order is the order of tensors in files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TensorSpec:
    """One tensor, known by its Hugging Face name within its block."""

    dims: str
    """A letter for each dimension, rows first."""
    gguf: str
    """Its name in GGUF, without the block's number and without its suffix."""
    switch: str | None = None
    """The config field that must be true for a model to have it; None if every model has it."""


BlockTensors = Mapping[str, TensorSpec]
"""Name within a block, e.g. ``mlp.up_proj.weight`` → what it is."""


def switched(tensors: BlockTensors, field: str) -> BlockTensors:
    """Return the tensors as ones that a model has only if its config says so."""
    return {name: replace(tensor, switch=field) for name, tensor in tensors.items()}


OUTSIDE: BlockTensors = {
    "model.embed_tokens.weight": TensorSpec("VD", "token_embd"),
    "model.norm.weight": TensorSpec("D", "output_norm"),
    "lm_head.weight": TensorSpec("VD", "output"),
}
"""Tensors outside the blocks; a tied head has no tensor."""

ATTENTION: BlockTensors = {
    "self_attn.q_proj.weight": TensorSpec("QD", "attn_q"),
    "self_attn.k_proj.weight": TensorSpec("KD", "attn_k"),
    "self_attn.v_proj.weight": TensorSpec("KD", "attn_v"),
    "self_attn.o_proj.weight": TensorSpec("DQ", "attn_output"),
}
ATTENTION_BIAS: BlockTensors = {
    "self_attn.q_proj.bias": TensorSpec("Q", "attn_q"),
    "self_attn.k_proj.bias": TensorSpec("K", "attn_k"),
    "self_attn.v_proj.bias": TensorSpec("K", "attn_v"),
}
OUTPUT_BIAS: BlockTensors = {"self_attn.o_proj.bias": TensorSpec("D", "attn_output")}
QK_NORM: BlockTensors = {
    "self_attn.q_norm.weight": TensorSpec("H", "attn_q_norm"),
    "self_attn.k_norm.weight": TensorSpec("H", "attn_k_norm"),
}
MLP: BlockTensors = {
    "mlp.gate_proj.weight": TensorSpec("MD", "ffn_gate"),
    "mlp.up_proj.weight": TensorSpec("MD", "ffn_up"),
    "mlp.down_proj.weight": TensorSpec("DM", "ffn_down"),
}
MLP_BIAS: BlockTensors = {
    "mlp.gate_proj.bias": TensorSpec("M", "ffn_gate"),
    "mlp.up_proj.bias": TensorSpec("M", "ffn_up"),
    "mlp.down_proj.bias": TensorSpec("D", "ffn_down"),
}
NORMS: BlockTensors = {
    "input_layernorm.weight": TensorSpec("D", "attn_norm"),
    "post_attention_layernorm.weight": TensorSpec("D", "ffn_norm"),
}
