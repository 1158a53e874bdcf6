"""A block in stages is the block at once, whatever is replaced on the way."""

import pytest
import torch

from bitquilt.models import blockwise, open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.rounding.staged_block import StagedBlock
from tests.factories import tiny_checkpoint

TOKENS = torch.randint(3, 200, (5, 16), generator=torch.Generator().manual_seed(1))
READERS = {
    "self_attn.q_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "self_attn.o_proj": ["self_attn.o_proj"],
    "mlp.gate_proj": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.down_proj": ["mlp.down_proj"],
}


def through(model, staged, hidden):
    """Replace all matrices of block 0 on the way; return what came out, and the same at once."""
    for owner, modules in READERS.items():
        staged.read(f"model.layers.0.{owner}")
        for module in modules:
            linear = staged.linear(f"model.layers.0.{module}")
            linear.weight = torch.nn.Parameter(linear.weight * 0.9, requires_grad=False)
    after = staged.finish()

    def replaced(name):
        weight = model.checkpoint.load(name)
        return weight * 0.9 if name.endswith("_proj.weight") else weight

    other = BlockwiseModel(model.checkpoint, replaced)
    return after, other.run_all(other.block(0), hidden.clone())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
@torch.no_grad()
def test_stages_are_one_pass_with_the_matrices_that_were_put_in(tmp_path, family, monkeypatch):
    model = BlockwiseModel(open_checkpoint(tiny_checkpoint(tmp_path, family)))
    monkeypatch.setattr(blockwise, "BATCH_TOKENS", 32)  # two windows at a time
    hidden = model.embed(TOKENS)
    after, expected = through(model, StagedBlock(model, 0, hidden), hidden)
    assert torch.equal(after, expected)


@torch.no_grad()
def test_attention_and_mlp_run_once(tmp_path):
    """And the model's next block is not what stood in for the last one's parts."""
    model = BlockwiseModel(open_checkpoint(tiny_checkpoint(tmp_path, "qwen3")))
    hidden = model.embed(TOKENS)
    staged = StagedBlock(model, 0, hidden)
    attention = staged.linear("model.layers.0.self_attn.v_proj")
    calls = []
    hook = attention.register_forward_hook(lambda *_: calls.append("v"))
    after, expected = through(model, staged, hidden)
    assert calls == ["v"]
    hook.remove()
    again = model.run_all(model.block(1), after.clone())
    torch.testing.assert_close(StagedBlock(model, 1, expected).finish(), again)


@torch.no_grad()
def test_stages_may_be_left_out(tmp_path):
    model = BlockwiseModel(open_checkpoint(tiny_checkpoint(tmp_path, "llama")))
    hidden = model.embed(TOKENS)
    staged = StagedBlock(model, 0, hidden)
    read, stream = staged.read("model.layers.0.mlp.down_proj")
    assert read.shape[:2] == stream.shape[:2] == TOKENS.shape
    assert torch.equal(staged.finish(), model.run_all(model.block(0), hidden.clone()))
