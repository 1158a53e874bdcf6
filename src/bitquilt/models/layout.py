"""Which tensors a model has, and their shapes, from its canonical config alone.

The letters of dimensions are those of :mod:`bitquilt.models.architectures.tensors`.
"""

from __future__ import annotations

from bitquilt.models.architectures import architecture_of
from bitquilt.models.architectures.tensors import OUTSIDE
from bitquilt.models.checkpoint import EMBEDDING, HEAD
from bitquilt.models.config import ModelConfig, head_dim
from bitquilt.models.names import block_path

FIELDS = {
    "V": "vocab_size",
    "D": "hidden_size",
    "Q": "num_attention_heads * head_dim",
    "K": "num_key_value_heads * head_dim",
    "H": "head_dim",
    "M": "intermediate_size",
}
"""Letter → the config fields that decide it."""


def letters(config: ModelConfig) -> dict[str, str]:
    """Tensor name → letters of its dimensions, in order: embedding, blocks, norm, head."""
    block = {
        name: tensor.dims
        for name, tensor in architecture_of(config).block.items()
        if tensor.switch is None or config.get(tensor.switch, False)
    }
    embedding, norm, head = f"{EMBEDDING}.weight", "model.norm.weight", f"{HEAD}.weight"
    found = {embedding: OUTSIDE[embedding].dims}
    for layer in range(config["num_hidden_layers"]):
        found.update({f"{block_path(layer)}.{name}": dims for name, dims in block.items()})
    found[norm] = OUTSIDE[norm].dims
    if not config["tie_word_embeddings"]:
        found[head] = OUTSIDE[head].dims
    return found


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Tensor name → shape of every tensor that a model with this canonical config has."""
    size = sizes(config)
    return {name: tuple(size[d] for d in dims) for name, dims in letters(config).items()}


def sizes(config: ModelConfig) -> dict[str, int]:
    """Letter → size."""
    width = head_dim(config)
    return {
        "V": int(config["vocab_size"]),
        "D": int(config["hidden_size"]),
        "Q": int(config["num_attention_heads"]) * width,
        "K": int(config["num_key_value_heads"]) * width,
        "H": width,
        "M": int(config["intermediate_size"]),
    }
