"""Which tokens matter: those of a text by their number, then the usual ones of its letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitquilt.calibration.corpus import Document, bundled, from_file
from bitquilt.calibration.text import Encode
from bitquilt.trimming.bpe import BpeFile
from bitquilt.trimming.config import TrimConfig

LETTER_SHARE = 0.999
"""The letters of a text are its most frequent characters, which make up this share of it."""


@dataclass(frozen=True, kw_only=True)
class TextCounts:
    """What a text is made of."""

    tokens: Counter[int]
    """Id of a token → how often it comes."""
    characters: Counter[str]
    """Character → how often it comes."""

    @property
    def letters(self) -> set[str]:
        """The characters that make up nearly all of the text."""
        most, seen = LETTER_SHARE * self.characters.total(), 0
        found = set()
        for character, count in self.characters.most_common():
            if seen >= most:
                break
            found.add(character)
            seen += count
        return found


def count_text(
    documents: Sequence[Document], encode: Encode, advance: Callable[[int], None]
) -> TextCounts:
    """Count the tokens and the characters of documents; ``advance`` is told of characters."""
    tokens: Counter[int] = Counter()
    characters: Counter[str] = Counter()
    for document in documents:
        tokens.update(encode(document))
        text = "".join(document.passages)
        characters.update(text)
        advance(len(text))
    return TextCounts(tokens=tokens, characters=characters)


def ranked_tokens(tokenizer: BpeFile, counts: TextCounts, *, fill: bool) -> Iterator[str]:
    """Yield tokens, those that matter most first; some may come twice.

    Args:
        tokenizer: what they are of.
        counts: of the text that they are for.
        fill: whether tokens follow that the text does not have, but that are made of its letters;
            merges come in the order of how usual their results were in the tokenizer's own text.
    """
    names = {index: token for token, index in tokenizer.vocabulary.items()}
    in_order = sorted(counts.tokens.items(), key=lambda one: (-one[1], one[0]))
    yield from (names[index] for index, _ in in_order if index in names)
    if not fill:
        return
    letters = counts.letters
    for left, right in tokenizer.merges:
        text = tokenizer.text_of(left + right)
        if text is not None and letters.issuperset(text):
            yield left + right


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
