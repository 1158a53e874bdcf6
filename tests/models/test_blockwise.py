"""The blockwise pass against the whole transformers model."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel, logit_tokens
from tests.factories import tiny_checkpoint

FAMILIES = ["llama4_text", "llama", "qwen2", "qwen3", "gemma3_text", "mistral"]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family, tmp_path):
    directory = tiny_checkpoint(tmp_path, family)
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = torch.randint(3, 200, (3, 24), generator=torch.Generator().manual_seed(0))
    model = BlockwiseModel(open_checkpoint(directory))
    ours = model.last_hidden(tokens) @ model.head().T
    with torch.no_grad():
        theirs = whole(tokens).logits
    assert (ours.cpu() - theirs).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("vocabulary", "tokens"),
    [(256, 256), (49_152, 128), (128_256, 64), (262_144, 32), (1 << 26, 1)],
)
def test_a_larger_vocabulary_has_logits_of_fewer_tokens(vocabulary, tokens):
    assert logit_tokens(vocabulary) == tokens
