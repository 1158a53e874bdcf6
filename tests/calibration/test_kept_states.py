"""Inputs of blocks that are computed again against those that were there."""

import pytest
import torch

from bitquilt.calibration.kept_states import KeptStates, states_at_once
from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel
from tests.factories import tiny_checkpoint


@pytest.mark.parametrize("every", [1, 2, 3])
def test_every_block_gets_what_it_read(every, tmp_path):
    model = BlockwiseModel(open_checkpoint(tiny_checkpoint(tmp_path, "qwen3", layers=5)))
    kept = KeptStates(model)
    kept._every = every
    tokens = torch.randint(3, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    hidden, read = model.embed(tokens), []
    with torch.no_grad():
        for index in range(5):
            read.append(hidden.clone())
            kept.keep(index, hidden)
            model.run_all(model.block(index, then=index + 1), hidden)
    for index in reversed(range(5)):
        torch.testing.assert_close(kept.take(index), read[index])
    assert not kept._kept


@pytest.mark.parametrize(("layers", "states"), [(1, 1), (3, 3), (4, 3), (32, 11), (40, 12)])
def test_states_at_once(layers, states):
    assert states_at_once(layers) == states


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that runs CUDA")
def test_a_block_that_was_loaded_ahead_is_that_block(tmp_path):
    model = BlockwiseModel(open_checkpoint(tiny_checkpoint(tmp_path, "qwen3", layers=3)))
    for index, then in ((0, 1), (1, 2), (0, None), (2, 3)):  # 2 was begun, 0 is asked for
        loaded = model.block(index, then=then).state_dict()
        name = "layers.0.mlp.down_proj.weight"
        expected = model.checkpoint.load(name.replace("layers.0", f"model.layers.{index}"))
        assert torch.equal(loaded[name].cpu(), expected)
