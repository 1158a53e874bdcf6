"""Checkpoints that have names and shapes but no weights, for tests that need nothing more."""

from __future__ import annotations

from typing import NoReturn

from bitquilt.models.checkpoint import Checkpoint


def shaped_checkpoint(
    architecture: str = "qwen3",
    *,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    width: int = 256,
    mlp: int = 512,
    tied: bool = True,
    vocabulary: int = 512,
) -> Checkpoint:
    """A canonical checkpoint of these sizes; loading a tensor from it is an error."""
    inside = {
        "self_attn.q_proj": (heads * head_dim, width),
        "self_attn.k_proj": (kv_heads * head_dim, width),
        "self_attn.v_proj": (kv_heads * head_dim, width),
        "self_attn.o_proj": (width, heads * head_dim),
        "mlp.gate_proj": (mlp, width),
        "mlp.up_proj": (mlp, width),
        "mlp.down_proj": (width, mlp),
        "input_layernorm": (width,),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(layers):
        for part, shape in inside.items():
            shapes[f"model.layers.{layer}.{part}.weight"] = shape
    if not tied:
        shapes["lm_head.weight"] = (vocabulary, width)
    config = {
        "model_type": architecture,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_size": width,
        "intermediate_size": mlp,
        "tie_word_embeddings": tied,
        "vocab_size": vocabulary,
    }
    return Checkpoint(
        name="shaped",
        config=config,
        original_config=config,
        shapes=shapes,
        reader=_no_weights,
        source_types={"F32": 1},
        tokenizer_dir=None,
        chat_template=None,
        generation_config={},
        findings=(),
        fingerprint="0" * 64,
    )


def _no_weights(name: str) -> NoReturn:
    raise AssertionError(f"a recipe has no business loading {name}")
