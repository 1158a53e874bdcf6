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
from contextlib import contextmanager
from dataclasses import replace
from traceback import print_exc
from typing import Self

import numpy as np

from bitquilt.engines.backend import Backend, Logits
from bitquilt.engines.constraint import ConstraintError
from bitquilt.engines.drafting import Drafter
from bitquilt.engines.engine import GeneratedToken, GenerationRequest, TokenScore
from bitquilt.engines.sampling import Sampler, token_score
from bitquilt.errors import UserError


class Generation:
    """A :class:`~bitquilt.engines.engine.Stream` in the process of its backend."""

    def __init__(
        self,
        backend: Backend,
        requests: Sequence[GenerationRequest],
        drafter: Drafter | None = None,
    ) -> None:
        self.prefilled = 0
        self._backend, self._drafter = backend, drafter
        self._count = 0
        self._running: list[_Row] = []
        self._joining: list[_Row] = []
        self._failed: list[tuple[int, GeneratedToken]] = []
        """What to say of rows that could not join."""
        for request in requests:
            self.add(request)

    def __iter__(self) -> Iterator[tuple[int, GeneratedToken]]:
        """See :class:`~bitquilt.engines.engine.Stream`."""
        for step in self.steps():
            yield from step

    def steps(self) -> Iterator[Iterator[tuple[int, GeneratedToken]]]:
        """Step by step: what the rows say in one step, which has to be read before the next."""
        while True:
            before, self._running = self._running, [row for row in self._running if not row.over]
            if self._joining:
                yield self._said(self._join())
            elif not self._running:
                return
            else:
                if len(self._running) < len(before):
                    self._backend.retain([i for i, row in enumerate(before) if not row.over])
                yield self._plain() if self._drafter is None else self._drafted(self._drafter)

    def _plain(self) -> Iterator[tuple[int, GeneratedToken]]:
        """What the rows say in one step, one token each."""
        return self._said(self._backend.step([row.tokens[-1] for row in self._running]))

    def _drafted(self, drafter: Drafter) -> Iterator[tuple[int, GeneratedToken]]:
        """What the rows say in one step, with tokens written ahead where that is faster."""
        rows = self._running
        with drafter.step(len(rows)) as step:
            drafts: list[list[int]] = []
            if step.drafted:
                left = [one.left - 1 for one in rows]  # after the token that the step gives anyway
                drafts = drafter.drafts([one.tokens for one in rows], left)
            for said in self._verified(drafter, drafts) if any(drafts) else self._plain():
                step.tokens += 1
                yield said

    @property
    def making_room(self) -> bool:
        """Whether a row has ended in the last step, so that another can take its place."""
        return any(row.over for row in self._running)

    def _said(self, logits: Logits | tuple[()]) -> Iterator[tuple[int, GeneratedToken]]:
        yield from self._failed
        self._failed.clear()
        for row, its_logits in zip(self._running, logits, strict=True):
            if not row.over:
                yield row.index, row.say(its_logits)

    def _verified(
        self, drafter: Drafter, drafts: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, GeneratedToken]]:
        """What the rows say where they read drafts: each as far as its draft is right, and one."""
        read = [[row.tokens[-1], *draft] for row, draft in zip(self._running, drafts, strict=True)]
        verified = drafter.large.verify(read)
        surplus = []
        for row, draft, logits in zip(self._running, drafts, verified, strict=True):
            kept = 0
            for ahead, its_logits in zip([*draft, None], logits, strict=True):
                piece = row.say(its_logits)
                kept += (right := piece.token == ahead)
                yield row.index, replace(piece, drafted=right)
                if row.over or not right:
                    break
            surplus.append(len(draft) - kept)
        drafter.large.retract(surplus)

    def _join(self) -> Logits | tuple[()]:
        """Let new rows in: all rows are read, of which the running ones lack their last token.

        If that fails, the new rows are let in one by one, and those for which it fails are over.
        """
        joining, self._joining = self._joining, []
        for row in joining:
            row.score_prompt()
        try:
            return self._prefill([*self._running, *joining], len(self._running))
        except UserError:
            for row in joining:
                try:
                    logits = self._prefill([*self._running, row], len(self._running))
                except UserError as error:
                    self._failed.append(row.fail(error.sentence))
        if self._failed and self._running:  # a failure leaves the context empty
            logits = self._prefill(self._running, len(self._running))
        return logits if self._running else ()

    def _prefill(self, rows: list[_Row], known: int) -> Logits:
        """Read rows, the first of which were known before; then they run."""
        room = max(row.left for row in rows)
        logits, prefilled = self._backend.prefill([row.tokens for row in rows], room)
        self._running = rows
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

    def interrupt(self) -> None:
        """See :class:`~bitquilt.engines.engine.Stream`; nobody waits here between two steps."""

    def close(self) -> None:
        """See :class:`~bitquilt.engines.engine.Stream`."""
        for row in (*self._running, *self._joining):
            row.over = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Row:
    """One prompt that is continued. What fails in it ends this row only."""

    def __init__(self, backend: Backend, index: int, request: GenerationRequest) -> None:
        self.index = index
        self.over = request.max_tokens < 1
        self.tokens = list(request.tokens)
        """The prompt, and what the model has said since."""
        self.left = request.max_tokens
        self._backend = backend
        self._request = request
        self._problem: str | None = None
        self._prompt: list[TokenScore] = []
        """What is still to be told of the prompt."""
        self._text = _TextStream(backend, request.tokens[-1])
        with self._told():
            own = request.tokens[len(request.tokens) - request.said :]
            grammar = request.grammar
            constraint = None if grammar is None else backend.grammars.constraint(grammar, own)
            self._sampler = Sampler(request, constraint)

    def score_prompt(self) -> None:
        """Find out how likely the prompt was, if that is asked for."""
        if self._request.score_prompt and not self.over:
            with self._told():
                tokens, top = self._request.tokens, self._request.scores or 0
                after = (row for rows in self._backend.read(tokens[:-1]) for row in rows)
                pairs = zip(tokens[1:], after, strict=True) if len(tokens) > 1 else ()
                self._prompt = [token_score(self._backend, row, t, top) for t, row in pairs]

    def fail(self, sentence: str) -> tuple[int, GeneratedToken]:
        """End the row; returns what to say of it."""
        self.over = True
        return self.index, GeneratedToken(self.tokens[-1], "", ends=True, problem=sentence)

    def say(self, logits: Logits) -> GeneratedToken:
        """Draw the next token."""
        if not np.isfinite(logits.max()):  # of NaN or infinity; some engines forbid tokens by −inf
            self.over = True
            return GeneratedToken(self.tokens[-1], "", ends=True, broken=True)
        with self._told():
            if self._problem is None:
                return self._say(logits)
        assert self._problem is not None
        return self.fail(self._problem)[1]

    def _say(self, logits: Logits) -> GeneratedToken:
        score, prompt = None, self._prompt
        token = self._sampler.draw(logits)
        if self._request.scores is not None:
            score = token_score(self._backend, logits, token, self._request.scores)
        self._prompt = []
        self.tokens.append(token)
        self.left -= 1
        if self._backend.ends_turn(token):
            self.over = True
            return GeneratedToken(token, self._text.rest(), ends=True, prompt=prompt)
        name = self._backend.control_text(token)
        text = self._text.push(token) if name is None else name
        self.over = self.over or self.left == 0
        if self.over and name is None:
            text += self._text.rest()
        return GeneratedToken(token, text, name is not None, score=score, prompt=prompt)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Keep what fails as the row's problem."""
        try:
            yield
        except ConstraintError as error:
            why = "the grammar or schema cannot be followed to its end"
            self._problem = f"{why}: {error}; simplify it"
        except UserError as error:
            self._problem = error.sentence
        except Exception as error:
            print_exc()  # to the engine's log
            why = f"{type(error).__name__}: {error}".partition("\n")[0]
            self._problem = f"the next token could not be drawn: {why}; report this request"


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
