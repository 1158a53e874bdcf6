"""The shortest way to the end of a grammar, by what JSON and marks look like.

llguidance tells what may come next, and not how far the end is. So what closes something is taken
before what opens something: the end of the turn, a control token, a bracket, a quotation mark.
Where none of these may come, the model chooses among what the grammar allows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from random import Random

from llguidance import LLTokenizer

_INSIDE = "z"
"""A letter that may come only inside a text."""
_CLOSING, _DIGITS, _FOLLOWING = '}]"ntf', "0123456789", ",:[{"
"""Outside of texts, the first of these that may come: what closes, values that are short, and what
has to follow, before white space. A quotation mark comes before digits: where both may come in the
middle of a value, it is a text of digits."""
_ZEROS = "0" * 9
"""Digits are drawn, and half of them are these: any other order misses some multiples for ever."""
_LETTERS = (*_CLOSING, *_DIGITS, *_FOLLOWING, _INSIDE, "\n")
_SUFFIX = re.compile(r'\[suffix=("(?:[^"\\]|\\.)*")\]')

Allowed = Callable[[int], bool]
"""Whether a token may come next."""


class ClosingTokens:
    """The tokens of one model that close things."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self._tokenizer = tokenizer
        self.ends = list(tokenizer.eos_tokens)
        self.controls = list(filter(tokenizer.is_special_token, range(tokenizer.vocab_size)))
        self.letters = {letter: self._alone(letter) for letter in _LETTERS}

    def spelled(self, text: str) -> list[int]:
        """A text as tokens."""
        return list(self._tokenizer.greedy_tokenize(text))

    def _alone(self, letter: str) -> int | None:
        tokens = self.spelled(letter)
        return tokens[0] if len(tokens) == 1 else None


class ShortestEnd:
    """The way to the end of one grammar."""

    def __init__(self, marks: ClosingTokens, grammar: str) -> None:
        """Take the model's marks, and the grammar, whose texts may end with marks of their own."""
        self._marks = marks
        parts = json.loads(grammar)["grammars"]
        found = [one for part in parts for one in _SUFFIX.findall(part.get("lark_grammar") or "")]
        self._suffixes = [json.loads(one) for one in dict.fromkeys(found)]
        self._saying: list[int] = []
        self._random = Random(0)
        self._quoted = self._lost = False

    def token(self, allowed: Allowed) -> int | None:
        """The next token of the way; None where the model chooses.

        Args:
            allowed: tells which tokens may come.
        """
        marks = self._marks
        for closing in (marks.ends, marks.controls):
            if (token := next(filter(allowed, closing), None)) is not None:
                return token
        if self._saying:
            token = self._saying.pop(0)
            if allowed(token):
                return token
            self._saying = []
        inside, line = self._may(_INSIDE, allowed), self._may("\n", allowed)
        if self._lost or (inside and line):
            return None if self._lost or not self._suffixes else self._said(allowed)
        if not inside:
            self._quoted = False
            digits = self._random.sample(_DIGITS + _ZEROS, len(_DIGITS + _ZEROS))
            letters: Sequence[str] = (*_CLOSING, *digits, *_FOLLOWING)
        elif self._quoted:  # a quotation mark did not end this text: it is none of JSON
            self._lost = True
            return None
        else:
            letters = ('"',)
            self._quoted = self._may('"', allowed)
        return next((marks.letters[one] for one in letters if self._may(one, allowed)), None)

    def _may(self, letter: str, allowed: Allowed) -> bool:
        token = self._marks.letters[letter]
        return token is not None and allowed(token)

    def _said(self, allowed: Allowed) -> int | None:
        """Begin to say a mark that ends texts; several are tried in turn."""
        suffix = self._suffixes.pop(0)
        self._suffixes.append(suffix)
        token, *self._saying = self._marks.spelled(suffix)
        return token if allowed(token) else None
