"""Prompts continued together, around any backend.

A row is in one of two lists, and leaves them when it has ended:

                    _join(): prefill           the next step: retain
    add() ──> _joining ──────────> _running ──────────────────> (gone)
                                    over: the turn ended, max_tokens, drop(), close()

``_joining`` are the waiting rows of :mod:`.engine`. A row that is ``over`` stays in its list up to
the next step, for the backend still counts it: only ``retain`` numbers the rows anew. A row that
was dropped before it joined is read with the others, and says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np

from bitquilt.engines.backend import Backend, Logits
from bitquilt.engines.constraint import Constraint, ConstraintError
from bitquilt.engines.engine import GeneratedToken, GenerationRequest
from bitquilt.engines.sampling import Sampler


class Generation:
    """A :class:`~bitquilt.engines.engine.Stream` in the process of its backend."""

    def __init__(self, backend: Backend, requests: Sequence[GenerationRequest]) -> None:
        self.prefilled = 0
        self._backend = backend
        self._count = 0
        self._running: list[_Row] = []
        self._joining: list[_Row] = []
        for request in requests:
            self.add(request)

    def __iter__(self) -> Iterator[tuple[int, GeneratedToken]]:
        """See :class:`~bitquilt.engines.engine.Stream`."""
        while True:
            before, self._running = self._running, [row for row in self._running if not row.over]
            if self._joining:
                logits = self._join()
            elif not self._running:
                return
            else:
                if len(self._running) < len(before):
                    self._backend.retain([i for i, row in enumerate(before) if not row.over])
                logits = self._backend.step([row.tokens[-1] for row in self._running])
            for row, its_logits in zip(self._running, logits, strict=True):
                if not row.over:
                    yield row.index, row.say(its_logits)

    def _join(self) -> Logits:
        """Let new rows in: all rows are read, of which the running ones lack their last token."""
        known = len(self._running)
        self._running += self._joining
        self._joining = []
        room = max(row.left for row in self._running)
        logits, prefilled = self._backend.prefill([row.tokens for row in self._running], room)
        self.prefilled += max(0, prefilled - known)
        return logits

    def add(self, request: GenerationRequest) -> int:
        """See :class:`~bitquilt.engines.engine.Stream`."""
        row = _Row(self._backend, self._count, request)
        self._count += 1
        self._joining.append(row)
        return row.index

    def drop(self, row: int) -> None:
        """See :class:`~bitquilt.engines.engine.Stream`."""
        for one in (*self._running, *self._joining):
            one.over = one.over or one.index == row

    def close(self) -> None:
        """See :class:`~bitquilt.engines.engine.Stream`."""
        for row in (*self._running, *self._joining):
            row.over = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Row:
    """One prompt that is continued."""

    def __init__(self, backend: Backend, index: int, request: GenerationRequest) -> None:
        self.index = index
        self.over = request.max_tokens < 1
        self.tokens = list(request.tokens)
        """The prompt, and what the model has said since."""
        self.left = request.max_tokens
        self._backend = backend
        self._problem: str | None = None
        self._sampler = Sampler(request, self._constraint(request))
        self._text = _TextStream(backend, request.tokens[-1])

    def say(self, logits: Logits) -> GeneratedToken:
        """Draw the next token."""
        if not np.isfinite(logits.max()):  # of NaN or infinity; some engines forbid tokens by −inf
            self.over = True
            return GeneratedToken(self.tokens[-1], "", ends=True, broken=True)
        try:
            if self._problem:
                raise ConstraintError(self._problem)
            token = self._sampler.draw(logits)
        except ConstraintError as error:
            self.over = True
            return GeneratedToken(self.tokens[-1], "", ends=True, problem=str(error))
        self.tokens.append(token)
        self.left -= 1
        if self._backend.ends_turn(token):
            self.over = True
            return GeneratedToken(token, self._text.rest(), control=False, ends=True)
        name = self._backend.control_text(token)
        text = self._text.push(token) if name is None else name
        self.over = self.over or self.left == 0
        if self.over and name is None:
            text += self._text.rest()
        return GeneratedToken(token, text, control=name is not None)

    def _constraint(self, request: GenerationRequest) -> Constraint | None:
        """The state of the grammar after what was said; a grammar that fails ends this row only."""
        if request.grammar is None:
            return None
        own = request.tokens[len(request.tokens) - request.said :]
        try:
            return self._backend.grammars.constraint(request.grammar, own)
        except ConstraintError as error:
            self._problem = str(error)
            return None


class _TextStream:
    """Tokens in, text out: holds back what may be half a character.

    Each piece is the difference between two decodings that start at the same earlier token, for
    many tokenizers decode a token differently at the start of a text.
    """

    def __init__(self, backend: Backend, before: int) -> None:
        """Start after ``before``, the last token of what is being continued."""
        self._backend = backend
        self._tokens = [before]
        self._said = backend.decode(self._tokens)

    def push(self, token: int) -> str:
        self._tokens.append(token)
        text = self._backend.decode(self._tokens)
        if text.endswith("\ufffd"):
            return ""
        piece = text[len(self._said) :]
        # Keep the last token alone as context, so that a long answer is not decoded again.
        self._tokens = self._tokens[-1:]
        self._said = self._backend.decode(self._tokens)
        return piece

    def rest(self) -> str:
        """Return the text that was held back, which is then held back no more."""
        text = self._backend.decode(self._tokens)
        piece, self._said = text[len(self._said) :], text
        return piece
