"""A checkpoint's own tokenizer, and tokenizers that are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bitquilt.calibration.corpus import Document
from bitquilt.calibration.text import encoder
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from tests.factories import tiny_checkpoint


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, "llama", layers=1))
    document = Document("prose", "s", "Hello, world", None)
    ids = encoder(checkpoint)(document)
    fewer = {"model.embed_tokens.weight": (max(ids), 64)}
    with pytest.raises(UserError, match=f"gives the id {max(ids)}, but .*another model"):
        encoder(replace(checkpoint, shapes=checkpoint.shapes | fewer))(document)


def test_a_tokenizer_that_is_none(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path, "llama", layers=1)
    checkpoint = open_checkpoint(source)
    (source / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer that transformers can load"):
        encoder(checkpoint)
