"""Unicode's form NFC, into which tokenizers as Qwen's bring text, and llama.cpp does not.

Letters with accents come in other forms from macOS and from some keyboards, of Vietnamese for one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

_FORM: Final = "NFC"


class Composer:
    """Puts letters and accents together."""

    def __init__(self, marks: Iterable[str]) -> None:
        """Take the texts of tokens that are found in a text before it is changed."""
        longest_first = sorted(marks, key=len, reverse=True)
        self._marks = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def compose(self, text: str) -> str:
        """Bring a text into the form; an accent that follows a mark is put on nothing."""
        if unicodedata.is_normalized(_FORM, text):
            return text
        pieces = self._marks.split(text)  # texts, and marks between them
        return "".join(
            piece if index % 2 else unicodedata.normalize(_FORM, piece)
            for index, piece in enumerate(pieces)
        )
