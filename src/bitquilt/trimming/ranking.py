"""Which tokens matter: those that a text has, and those that more text like it would have.

Letters: V vocabulary.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bitquilt.calibration.corpus import Document, bundled, from_file
from bitquilt.calibration.text import Encode
from bitquilt.trimming.bpe import BpeFile
from bitquilt.trimming.config import TrimConfig

BESIDE_SHARE = 0.3
"""What code, maths and tables weigh in all, beside text in the languages that were asked for."""
RARE_LETTER = 1e-4
"""A letter of a smaller share of a text's letters is not of its language."""
LARGE_SCRIPTS = ("CJK", "HANGUL")
"""Scripts of more letters than a text has often; all of them are a language's, if some are."""
FLAT_RANKS = 1000
"""Merges that are about equally frequent; after them, frequency falls as the rank grows (Zipf)."""
_LEAST = 1e-10


@dataclass(frozen=True)
class KeptText:
    """The text whose tokens are kept."""

    given: Sequence[Document]
    """The user's."""
    languages: Sequence[Document]
    """Bundled text in the languages that were asked for."""
    beside: Sequence[Document]
    """Bundled code, maths and tables."""

    @property
    def own(self) -> list[Document]:
        """The user's, and that in the languages."""
        return [*self.given, *self.languages]

    @property
    def documents(self) -> list[Document]:
        """All of it."""
        return [*self.own, *self.beside]


def count_tokens(
    documents: Sequence[Document], encode: Encode, advance: Callable[[int], None]
) -> Counter[int]:
    """Count how often each token comes, by its id; ``advance`` is told of characters."""
    counts: Counter[int] = Counter()
    for document in documents:
        counts.update(encode(document))
        advance(sum(map(len, document.passages)))
    return counts


def counted_shares(own: Counter[int], beside: Counter[int]) -> dict[int, float]:
    """Give the share of each token in the text to keep, by its id.

    Args:
        own: how often each comes in the user's text and that in the languages.
        beside: the same of code, maths and tables, which weigh :data:`BESIDE_SHARE` in all.

    Returns:
        shares whose sum is 1 + :data:`BESIDE_SHARE`, or 1 where one of the two is empty.
    """
    weight = BESIDE_SHARE if own else 1.0
    shares = {index: count / own.total() for index, count in own.items()}
    for index, count in beside.items():
        shares[index] = shares.get(index, 0.0) + weight * count / beside.total()
    return shares


def ranked_tokens(
    tokenizer: BpeFile,
    counted: Mapping[int, float],
    expected: Tensor | None = None,
    letters: Collection[str] = (),
    first: Collection[int] = (),
) -> list[str]:
    """List tokens, those that matter most first.

    What the model expects is read at few places, so it knows little of the tail. The order of the
    merges is the order of frequency in the text that the tokenizer was made of, which was of many
    languages. Each makes up for the other: their geometric mean weighs as much as what was counted.

    Args:
        tokenizer: what they are of.
        counted: the share of each in the text that they are for.
        expected: the share of each token in more text like it [V]. None where only tokens of the
            text are wanted.
        letters: of the text's languages; the order of the merges counts for tokens of these alone.
        first: ids of tokens that come before all others: those of a user's own text.
    """
    weight = dict(counted)
    if expected is not None:
        prior = merge_shares(tokenizer, letters)
        means = {
            index: math.sqrt((share + _LEAST) * (prior.get(index, 0.0) + _LEAST))
            for index, share in enumerate(expected.tolist())
        }
        total = sum(means.values())
        for index, mean in means.items():
            weight[index] = weight.get(index, 0.0) + mean / total
    names = {index: token for token, index in tokenizer.vocabulary.items()}
    in_order = sorted(weight.items(), key=lambda one: (one[0] not in first, -one[1], one[0]))
    return [names[index] for index, _ in in_order if index in names]


def merge_shares(tokenizer: BpeFile, letters: Collection[str]) -> dict[int, float]:
    """Give the shares that the order of the merges tells, of tokens of some letters, by id."""
    ordered = []
    for token in tokenizer.by_frequency:
        text = tokenizer.text_of(token).removeprefix(" ")
        index = tokenizer.vocabulary.get(token)
        if text and index is not None and all(map(letters.__contains__, text.casefold())):
            ordered.append(index)
    total = sum(1 / (rank + FLAT_RANKS) for rank in range(len(ordered)))
    return {index: 1 / (rank + FLAT_RANKS) / total for rank, index in enumerate(ordered)}


class _Letters(frozenset[str]):
    """Letters, and all letters of some scripts."""

    scripts: frozenset[str]

    def __contains__(self, letter: object) -> bool:
        return super().__contains__(letter) or (
            isinstance(letter, str) and bool(self.scripts) and _script(letter) in self.scripts
        )


def letters_of(documents: Sequence[Document]) -> Collection[str]:
    """Give the letters that a text's language is written with, as ``str.casefold`` has them."""
    counts: Counter[str] = Counter()
    for document in documents:
        for passage in document.passages:
            counts.update(passage.casefold())
    marks = {one: count for one, count in counts.items() if unicodedata.category(one)[0] in "LM"}
    total = sum(marks.values())
    found = _Letters(one for one, count in marks.items() if count >= RARE_LETTER * total)
    large: Counter[str] = Counter()
    for one, count in marks.items():
        large[_script(one)] += count
    found.scripts = frozenset(
        name for name in LARGE_SCRIPTS if large[name] >= 100 * RARE_LETTER * total
    )
    return found


def _script(letter: str) -> str:
    """Name a letter's script, as the first word of its name in Unicode."""
    return unicodedata.name(letter, "").partition(" ")[0]


def language_of(document: Document) -> str:
    """Give the language of a bundled document; empty of code, maths and tables."""
    kind, _, language = document.domain.rpartition("-")
    return language if kind not in ("", "code") and len(language) == 2 else ""


def text_to_keep(config: TrimConfig) -> KeptText:
    """Give the documents whose tokens are kept: a user's, and bundled ones in some languages.

    Raises:
        UserError: a file cannot be read.
    """
    given = [document for path in config.keep for document in from_file(Path(path))]
    if not config.languages:
        return KeptText(given, (), ())
    both = [*bundled("calibration"), *bundled("search")]
    return KeptText(
        given,
        [document for document in both if language_of(document) in config.languages],
        [document for document in both if not language_of(document)],
    )
