"""A checkpoint's own tokenizer, and tokenizers that are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from bitquilt.calibration.corpus import Document, bundled
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
    with pytest.raises(UserError, match="is not a tokenizer"):
        encoder(checkpoint)


def test_conversations_as_transformers_renders_them() -> None:
    checkpoint = open_checkpoint("demo")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.tokenizer_dir)
    encode = encoder(checkpoint)
    documents = [document for document in bundled("held-out") if document.messages][:20]
    assert documents
    for document in documents:
        meant = tokenizer.apply_chat_template(
            list(document.messages or ()),
            chat_template=checkpoint.chat_template,
            return_dict=False,
        )
        assert encode(document) == list(meant)


@pytest.mark.parametrize("template", ["{% nonsense %}", "{{ none + 'x' }}"])
def test_a_template_that_fails_is_one_sentence(template: str) -> None:
    encode = encoder(replace(open_checkpoint("demo"), chat_template=template))
    assert encode(Document("prose", "s", "Hello, world", None))  # which needs no template
    chat = Document("maths", "s", "", ({"role": "user", "content": "Hello"},))
    with pytest.raises(UserError, match=r"demo refuses a conversation of s: .*plain text"):
        encode(chat)
