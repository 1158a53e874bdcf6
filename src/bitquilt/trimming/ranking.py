"""Which tokens matter: those that a text has, and those that more text like it would have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from bitquilt.calibration.corpus import Document, bundled, from_file
from bitquilt.calibration.text import Encode
from bitquilt.trimming.bpe import BpeFile
from bitquilt.trimming.config import TrimConfig


def count_tokens(
    documents: Sequence[Document], encode: Encode, advance: Callable[[int], None]
) -> Counter[int]:
    """Count how often each token comes, by its id; ``advance`` is told of characters."""
    counts: Counter[int] = Counter()
    for document in documents:
        counts.update(encode(document))
        advance(sum(map(len, document.passages)))
    return counts


def ranked_tokens(
    tokenizer: BpeFile, counts: Counter[int], expected: Tensor | None = None
) -> list[str]:
    """List tokens, those that matter most first.

    Args:
        tokenizer: what they are of.
        counts: how often each comes in the text that they are for.
        expected: the share of each token in more text like it [V]; what is expected weighs as much
            as what was counted. None where only tokens of the text are wanted.
    """
    weight: dict[int, float] = dict(counts)
    if expected is not None:
        total = counts.total()
        for index, share in enumerate(expected.tolist()):
            weight[index] = weight.get(index, 0) + total * share
    names = {index: token for token, index in tokenizer.vocabulary.items()}
    in_order = sorted(weight.items(), key=lambda one: (-one[1], one[0]))
    return [names[index] for index, _ in in_order if index in names]


def language_of(document: Document) -> str:
    """Give the language of a bundled document; empty of code, maths and tables."""
    kind, _, language = document.domain.rpartition("-")
    return language if kind not in ("", "code") and len(language) == 2 else ""


def text_to_keep(config: TrimConfig) -> list[Document]:
    """Give the documents whose tokens are kept: a user's, and bundled ones in some languages.

    Raises:
        UserError: a file cannot be read.
    """
    own = [document for path in config.keep for document in from_file(Path(path))]
    if not config.languages:
        return own
    wanted = {*config.languages, ""}
    both = [*bundled("calibration"), *bundled("search")]
    return own + [document for document in both if language_of(document) in wanted]


def prose(documents: Sequence[Document]) -> list[Document]:
    """Give the documents that have a language, or all of them if none has."""
    return [document for document in documents if language_of(document)] or list(documents)
