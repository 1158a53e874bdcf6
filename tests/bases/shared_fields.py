"""Fields that configs of many tiny models share."""

from __future__ import annotations

from tests.factories import VOCABULARY

SHARED = {
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
LARGER = {"vocab_size": VOCABULARY + 32}
"""For tokenizers to which something is added."""
DELTA = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
# llama.cpp reads an MLP as wide as its stream the wrong way round
VISION = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
}
