"""What a model expects, against transformers' probabilities."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from bitquilt.models import open_checkpoint
from bitquilt.trimming.expected import expected_shares
from tests.factories import tiny_checkpoint


def test_shares_are_the_mean_probabilities_of_the_next_token(tmp_path):
    source = tiny_checkpoint(tmp_path, "qwen3", layers=1)
    checkpoint = open_checkpoint(source)
    tokens = torch.randint(0, 512, (3, 40), generator=torch.Generator().manual_seed(0))
    done = []
    found = expected_shares(checkpoint, tokens, done.append)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(source)(tokens).logits[:, :-1]
    mean = logits.double().softmax(-1).mean((0, 1))
    torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-9)
    assert sum(done) > 0
