"""Answers that follow a grammar: which tokens may come next, by llguidance.

A grammar is one of llguidance's own, as :mod:`bitquilt.talk.grammar` writes them. Here it becomes
the set of tokens that the sampler chooses from, and follows what was chosen. Letters: V vocabulary,
A allowed tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from bitquilt.engines.shortest import ClosingTokens, ShortestEnd

COMPILED = 16
"""So many grammars stay compiled: an answer has several legs, and clients repeat their schemas."""

FEW = 8
"""A list of tokens is quicker than a mask for less than this part of the vocabulary."""


class ConstraintError(Exception):
    """A grammar became too large to follow, or what was said before does not follow it."""


class Grammars:
    """Compiles grammars for the tokens of one model."""

    def __init__(self, tokenizer: LLTokenizer, vocabulary: int) -> None:
        """Take llguidance's view of the model's tokens, and their number V."""
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    @classmethod
    def of(
        cls,
        pieces: Sequence[bytes],
        special: Sequence[int],
        ends: Sequence[int],
        tokenize: Callable[[str], list[int]],
    ) -> Grammars:
        """Compile for tokens that are listed.

        Args:
            pieces: the bytes of each of the V tokens.
            special: tokens that are no text, whatever their bytes are.
            ends: tokens that end a turn; not empty.
            tokenize: text to tokens, so that the model's own tokens say what the grammar forces.
        """
        listed = _Listed(pieces, special, ends[0], tokenize)
        tokenizer = LLTokenizer(TokenizerWrapper(listed), n_vocab=len(pieces), eos_token=list(ends))
        return cls(tokenizer, len(pieces))

    @cached_property
    def _marks(self) -> ClosingTokens:
        return ClosingTokens(self._tokenizer)

    def constraint(self, grammar: str, said: Sequence[int]) -> Constraint:
        """Begin to follow a grammar.

        Args:
            grammar: in llguidance's JSON.
            said: the tokens that the model has said already.

        Raises:
            ConstraintError: the grammar cannot be compiled, or these tokens do not follow it.
        """
        matcher = self._compiled.pop(grammar, None)
        if matcher is None:
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
            _require_sound(matcher)
        self._compiled[grammar] = matcher
        if len(self._compiled) > COMPILED:
            self._compiled.popitem(last=False)
        begun = Constraint(
            matcher.deep_copy(),
            self._vocabulary,
            self._tokenizer.vocab_size,
            lambda: ShortestEnd(self._marks, grammar),
        )
        for token in said:
            begun.take(token)
        return begun


class _Listed:
    """Tokens in the form that llguidance reads them from."""

    bos_token_id = None

    def __init__(
        self,
        pieces: Sequence[bytes],
        special: Sequence[int],
        end: int,
        tokenize: Callable[[str], list[int]],
    ) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = list(pieces), list(special), end
        self._tokenize = tokenize
        self._by_piece = {piece: token for token, piece in enumerate(pieces)}
        self._longest = max(map(len, pieces))

    def __call__(self, text: bytes) -> list[int]:
        tokens = self._tokenize(text.decode())
        if b"".join(self.tokens[token] for token in tokens) == text:
            return tokens
        return self._greedy(text)  # a tokenizer that puts a space before every text

    def _greedy(self, text: bytes) -> list[int]:
        found = []
        while text:
            ends = range(min(self._longest, len(text)), 0, -1)
            end = next(end for end in ends if text[:end] in self._by_piece)
            found.append(self._by_piece[text[:end]])
            text = text[end:]
        return found


class Constraint:
    """The state of one grammar in one answer."""

    def __init__(
        self, matcher: LLMatcher, vocabulary: int, size: int, end: Callable[[], ShortestEnd]
    ) -> None:
        """Take a matcher, V, how many tokens the matcher knows (V or more), and the way out."""
        self._make_end = end
        self._matcher, self._vocabulary = matcher, vocabulary
        self._bits = np.zeros((size + 31) // 32, dtype=np.uint32)
        self._address = self._bits.ctypes.data

    @cached_property
    def _end(self) -> ShortestEnd:
        return self._make_end()

    def narrow(
        self, logits: npt.NDArray[np.float32], ending: bool = False
    ) -> tuple[npt.NDArray[np.intp] | None, npt.NDArray[np.float32]]:
        """Leave the tokens that may come next.

        Args:
            logits: float32 [V].
            ending: whether to leave only what leads to the grammar's end, where that is known.

        Returns:
            The tokens, int [A], and their logits, float32 [A]; or where they are many, None, and
            logits [V] that are −∞ for all others.

        Raises:
            ConstraintError: the grammar became too large.
        """
        self._matcher.unsafe_compute_mask_ptr(self._address, self._bits.nbytes)
        _require_sound(self._matcher)
        if ending and (token := self._end.token(self._allows)) is not None:
            return np.array([token]), logits[[token]]
        if int(np.bitwise_count(self._bits).sum()) * FEW > self._vocabulary:
            some = np.unpackbits(self._bits.view(np.uint8), bitorder="little").view(np.bool_)
            return None, np.where(some[: self._vocabulary], logits, np.float32(-np.inf))
        words = np.flatnonzero(self._bits)
        ones = np.unpackbits(self._bits[words].view(np.uint8), bitorder="little").reshape(-1, 32)
        rows, places = np.nonzero(ones)
        tokens = words[rows] * 32 + places
        if len(tokens) == 0 or tokens[-1] >= self._vocabulary:  # a tokenizer can have more
            tokens = tokens[tokens < self._vocabulary]
            if len(tokens) == 0:
                raise ConstraintError("none of the model's tokens may come next")
        return tokens, logits[tokens]

    def _allows(self, token: int) -> bool:
        return token < self._vocabulary and bool(self._bits[token >> 5] >> (token & 31) & 1)

    def take(self, token: int) -> None:
        """Take note of one more token.

        Raises:
            ConstraintError: the token does not follow the grammar.
        """
        self._matcher.consume_token(token)
        _require_sound(self._matcher)


def _require_sound(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise ConstraintError(matcher.get_error().strip().partition("\n")[0])
