"""Windows of tokens for one model, by its own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from bitquilt.calibration.corpus import Document, bundled, from_file, windows, without_overlap
from bitquilt.errors import UserError
from bitquilt.models.chat_template import ChatTemplate, ChatTemplateError
from bitquilt.models.checkpoint import EMBEDDING, Checkpoint

Encode = Callable[[Document], list[int]]
ENOUGH = 16
"""Characters that are tokenized for each token needed: three or four times as many as it takes."""


def encoder(checkpoint: Checkpoint) -> Encode:
    """Return a function from a document to token ids.

    Text gets the tokenizer's own start token; messages go through the chat template.

    Without a chat template, messages become paragraphs.

    Raises:
        UserError: the checkpoint has no tokenizer, or one that is damaged; encoding raises it for
            a tokenizer of another model, whose ids go beyond the embedding's rows, and for
            messages that the chat template refuses.
    """
    if checkpoint.tokenizer_dir is None:
        raise UserError(
            f"{checkpoint.name} has no tokenizer; put tokenizer.json and tokenizer_config.json "
            "beside its config.json"
        )
    tokenizer = _tokenizer(checkpoint.tokenizer_dir)
    template = checkpoint.chat_template
    rows, _ = checkpoint.matrices[EMBEDDING]

    def encode(document: Document) -> list[int]:
        ids = tokenize(document)
        if (largest := max(ids, default=0)) >= rows:
            raise UserError(
                f"the tokenizer in {checkpoint.tokenizer_dir} gives the id {largest}, but "
                f"{checkpoint.name} has {rows} embeddings; the tokenizer belongs to another "
                "model: put the model's own there"
            )
        return ids

    def tokenize(document: Document) -> list[int]:
        if document.messages is None:
            return list(tokenizer.encode(document.text))
        if template is None:
            return list(tokenizer.encode("\n\n".join(document.passages)))
        try:
            rendered = ChatTemplate.compile(template, checkpoint.name).render(
                document.messages, add_generation_prompt=False, **tokenizer.special_tokens_map
            )
        except ChatTemplateError as error:
            raise UserError(
                f"the chat template of {checkpoint.name} refuses a conversation of "
                f"{document.source}: {error.reason}; change its roles, or give it as plain text"
            ) from error
        return list(tokenizer.encode(rendered, add_special_tokens=False))

    return encode


def _tokenizer(directory: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # tokenizers raises no narrower class
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{directory} holds no tokenizer that transformers can load ({reason}); download its "
            "tokenizer.json and tokenizer_config.json again"
        ) from error


def held_out_documents(file: str | Path | None = None) -> list[Document]:
    """The documents that judge: the bundled ones, or a user's."""
    return bundled("held-out") if file is None else from_file(Path(file))


def calibration_documents(
    file: str | Path | None, held_out: str | Path | None = None
) -> tuple[list[Document], list[str]]:
    """The bundled documents or a user's, less those that repeat held-out text, and their names."""
    if file is None and held_out is None:
        return bundled("calibration"), []  # made of other documents than the bundled held-out text
    documents = bundled("calibration") if file is None else from_file(Path(file))
    return without_overlap(documents, held_out_documents(held_out))


def token_windows(documents: Sequence[Document], encode: Encode, count: int, length: int) -> Tensor:
    """Cut int64 [count, length] windows from documents, spread over all of them.

    Only as many documents are tokenized as give several times the text that is needed.
    """
    chosen = _spread(documents, count * length * ENOUGH)
    return torch.from_numpy(windows(chosen, encode, count, length)[0])


def judging_windows(
    documents: Sequence[Document], encode: Encode, count: int, length: int
) -> tuple[Tensor, Tensor]:
    """Cut windows of as many documents as there are, and tell the document of each token.

    Tokens of one document hang together: the more documents, the more the text says.

    Returns:
        tokens and numbers of documents, both int64 [count, length].
    """
    chosen = _spread(documents, 4 * count * length * ENOUGH)  # there are few long documents
    tokens, owners = windows(chosen, encode, count, length, apart=True)
    return torch.from_numpy(tokens), torch.from_numpy(owners)


def _spread(documents: Sequence[Document], characters: int) -> list[Document]:
    """Documents with at least that many characters, or all: the same share of every domain.

    Within a domain every n-th document is taken; where those are short ones, the skipped follow.
    """
    stride = max(1, sum(map(_characters, documents)) // characters)
    domains: dict[str, list[Document]] = {}
    for document in documents:
        domains.setdefault(document.domain, []).append(document)
    chosen = []
    for own in domains.values():
        missing = sum(map(_characters, own)) / stride
        for document in chain.from_iterable(own[start::stride] for start in range(stride)):
            if missing <= 0:
                break
            chosen.append(document)
            missing -= _characters(document)
    return chosen


def _characters(document: Document) -> int:
    return sum(map(len, document.passages))
