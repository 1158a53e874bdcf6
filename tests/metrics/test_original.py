from __future__ import annotations

import pytest
import torch

from bitquilt.errors import UserError
from bitquilt.metrics.original import OriginalModel, tokens_key
from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.runtime.workdir import WorkDir
from tests.factories import VOCABULARY, tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(tiny_checkpoint(tmp_path_factory.mktemp("original"), layers=1))


def windows(seed, count=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (count, 16), generator=generator)


def test_texts_share_one_head_and_are_read_once(checkpoint, tmp_path, monkeypatch):
    with WorkDir(tmp_path, {}) as work:
        original = OriginalModel(checkpoint, work)
        first, second = original.on(windows(1)), original.on(windows(2))
        assert first.head is second.head
        assert torch.equal(first.hidden, BlockwiseModel(checkpoint).last_hidden(windows(1)))
        monkeypatch.setattr(BlockwiseModel, "last_hidden", None)
        again = OriginalModel(checkpoint, work).on(windows(1))
        assert torch.equal(again.hidden, first.hidden)


def test_texts_are_named_by_their_tokens():
    assert tokens_key(windows(1)) == tokens_key(windows(1).clone())
    assert len({tokens_key(t) for t in (windows(1), windows(2), windows(1).view(4, 8))}) == 3


def test_kept_states_of_other_tokens_are_refused(checkpoint, tmp_path):
    with WorkDir(tmp_path, {}) as work:
        original = OriginalModel(checkpoint, work)
        hidden = original.on(windows(1)).hidden
        name = f"teacher/{tokens_key(windows(2))}"
        work.save(name, {"tokens": windows(1), "hidden": hidden}, {})
        with pytest.raises(UserError, match="made from other text"):
            original.on(windows(2))
