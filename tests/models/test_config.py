"""Configs that transformers finds contradictory are refused in one sentence."""

from __future__ import annotations

import pytest

from bitquilt.errors import UserError
from bitquilt.models.config import complete


def test_what_transformers_says_is_a_part_of_the_sentence() -> None:
    odd = {"model_type": "llama", "hidden_size": 577, "num_attention_heads": 9}
    with pytest.raises(UserError) as caught:
        complete(odd)
    assert caught.value.sentence == (
        "config.json does not make a valid llama model: The hidden size (577) is not a multiple of "
        "the number of attention heads (9); compare it with the one on the model's page"
    )
