"""Windows of tokens for one model: documents through its own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from bitquilt.calibration.corpus import Document, bundled, from_file, windows, without_overlap
from bitquilt.checkpoint.checkpoint import Checkpoint
from bitquilt.errors import UserError

Encode = Callable[[Document], list[int]]
ENOUGH = 16
"""Characters tokenized for each token needed: three or four times what windows are cut from."""


def encoder(checkpoint: Checkpoint) -> Encode:
    """A document → token ids: text with the tokenizer's own start token, messages in the template.

    Without a chat template, messages become paragraphs.

    Raises:
        UserError: the checkpoint has no tokenizer.
    """
    if checkpoint.tokenizer_dir is None:
        raise UserError(
            f"{checkpoint.name} has no tokenizer; put tokenizer.json and tokenizer_config.json "
            "beside its config.json"
        )
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.tokenizer_dir)
    template = checkpoint.chat_template

    def encode(document: Document) -> list[int]:
        if document.messages is None:
            return list(tokenizer.encode(document.text))
        if template is None:
            return list(tokenizer.encode("\n\n".join(document.passages)))
        rendered = tokenizer.apply_chat_template(
            list(document.messages), chat_template=template, tokenize=False
        )
        return list(tokenizer.encode(rendered, add_special_tokens=False))

    return encode


def calibration_documents(file: Path | None) -> tuple[list[Document], list[str]]:
    """The bundled documents or a user's, less those that repeat held-out text, and their names."""
    if file is None:
        return bundled("calibration"), []
    return without_overlap(from_file(file), bundled("held-out"))


def token_windows(documents: Sequence[Document], encode: Encode, count: int, length: int) -> Tensor:
    """int64 [count, length] windows of the documents, spread over all of them.

    Only as many documents are tokenized as give several times the text that is needed.
    """
    characters = sum(len(passage) for document in documents for passage in document.passages)
    stride = max(1, characters // (count * length * ENOUGH))
    return torch.from_numpy(windows(documents[::stride], encode, count, length))
