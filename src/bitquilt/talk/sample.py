"""One sample of an answer: tokens in, events out, and an end that always comes.

The state of a sample is the tokens of its answer so far. A rollback takes some of them back,
closing the reasoning adds some; either way the sample then wants other tokens to be continued,
which is another leg with a request of its own. So an engine need not know of any of it.
:mod:`.session` and :mod:`bitquilt.serve.scheduler` bring samples and engines together, by these
states:

                       request()
    begin() ──> idle ────────────> waiting ── push(): the turn, a stop string, the box ──> ended
                 ^                   │ │                                                     ^
                 └ push(): rollback, ┘ └─ ran_out(): max_tokens or the context is full ──────┘
                   reasoning closed

``waiting`` is true from a request up to whatever ends its leg; tokens that still come afterwards
belong to what is taken back, so they are left out. ``ended`` is None up to the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Literal

from bitquilt.engines import (
    Engine,
    GeneratedToken,
    GenerationRequest,
    Sampling,
    TokenScore,
    require_spoken,
)
from bitquilt.errors import UserError
from bitquilt.talk.events import Closing, ClosingReason, End, Event, Rollback, Scored
from bitquilt.talk.grammar import beside_reasoning
from bitquilt.talk.loop_detector import Loop, LoopDetector
from bitquilt.talk.prompt import Prompt
from bitquilt.talk.reasoning import BOX, PLAIN, boxed
from bitquilt.talk.transcript import Transcript

ANSWER_ROOM = 256
"""With a thinking budget, the answer keeps so many tokens, or half of all if that is less."""
BOX_ROOM = 64
"""A box that was opened for the model is closed for it too after so many tokens."""
AVOIDED = 64
"""After a rollback, at most so many tokens of the loop are made unlikely."""
LEG_SEEDS = 1 << 32
"""The distance between the seeds of one sample's legs; several samples have consecutive seeds."""


@dataclass(frozen=True)
class AnswerSettings:
    """How to answer."""

    sampling: Sampling
    _: KW_ONLY
    max_tokens: int
    """The most tokens of an answer, reasoning included; the model's context can allow fewer."""
    think_budget: int | None = None
    """The reasoning is closed after so many tokens; with a budget there always is an answer."""
    stop: Sequence[str] = ()
    """The answer ends before the first of these texts; the reasoning may contain them."""
    max_rollbacks: int | None = 3
    """After so many rollbacks the reasoning is closed, or the grammar brought to its end; None lets
    the model repeat itself."""
    grammar: str | None = None
    """The answer follows this grammar, one of :mod:`.grammar`; reasoning between tags is free.
    A model that reasons up to a box does not reason then, for nothing else ends its reasoning."""

    logit_bias: Sequence[tuple[int, float]] = ()
    """Tokens, and what is added to their logits."""
    scores: int | None = None
    """Tell how likely the answer's tokens were, with so many of the likeliest; None for not."""
    score_prompt: bool = False
    """Tell how likely the prompt's tokens were, too."""


class Sample:
    """One answer in the making.

    Until it has :attr:`ended`, continue its :meth:`request`, :meth:`push` the tokens that come for
    as long as it is :attr:`waiting`, and call :meth:`ran_out` where the request came to its end.
    """

    def __init__(self, engine: Engine, prompt: Prompt, settings: AnswerSettings) -> None:
        """Prepare an answer.

        Raises:
            UserError: the prompt fills the model's context.
        """
        self.ended: End | None = None
        self.waiting = False
        """Whether more tokens of the present request are wanted."""
        self.prefilled = 0
        """How many prompt tokens the engine computed."""
        self._marks = (*prompt.style.tags, *prompt.marks)
        self._grammar = settings.grammar
        if settings.grammar is not None:
            if prompt.style.boxed:
                prompt = replace(prompt, style=PLAIN, thinking=False)
            self._grammar = beside_reasoning(
                engine, prompt.style, prompt.thinking, settings.grammar
            )
        self._prompt, self._settings, self._info = prompt, settings, engine.info
        self._closing = _Words(engine, prompt.style.closing)
        self._box = _Words(engine, BOX)
        self._room = min(settings.max_tokens, engine.info.context - len(prompt.tokens))
        if engine.info.context <= len(prompt.tokens) and settings.max_tokens:
            raise UserError(
                f"the conversation is {len(prompt.tokens):,} tokens long, but the model can "
                f"read only {engine.info.context:,}; ask something shorter, or begin a new one"
            )
        self._budget: int | None = None
        if settings.think_budget is not None:
            rest = self._room - len(self._closing.tokens) - min(ANSWER_ROOM, self._room // 2)
            self._budget = max(0, min(settings.think_budget, rest))
        """The most tokens of reasoning that leave room for closing it and for an answer."""
        self._legs = self._rollbacks = self._rollbacks_here = self._discarded = self._drafted = 0
        self._avoid: list[int] = []
        self._closed: ClosingReason | None = None
        self._box_at: int | None = None
        self._floor = 0
        self._finish = 0 if self._grammar is None else min(ANSWER_ROOM, self._room // 2)
        """So many of the last tokens lead to the end of the grammar."""
        self._scores: dict[int, TokenScore] = {}
        """Place of a token of the answer → how likely it was."""
        self._prompt_scores: Sequence[TokenScore] = ()
        self._restart([])

    def request(self) -> GenerationRequest:
        """What to continue, and for how long."""
        sampling, leg = self._settings.sampling, self._legs
        self._legs, self.waiting = leg + 1, True
        left = self._left()
        return GenerationRequest(
            tokens=[*self._prompt.tokens, *(token for token, _ in self._said)],
            sampling=replace(sampling, seed=sampling.seed + leg * LEG_SEEDS),
            max_tokens=max(1, left if self._box_at is None else min(left, BOX_ROOM)),
            said=len(self._said),
            avoid=self._avoid,
            grammar=self._grammar,
            finish=self._finish,
            logit_bias=self._settings.logit_bias,
            scores=self._settings.scores,
            score_prompt=self._settings.score_prompt and not leg,
        )

    def begin(self) -> Iterator[Event]:
        """Prepare the first request: with a budget of 0, the reasoning is closed at once."""
        if not (self._room or self._settings.score_prompt):
            yield from self._end("length")
        elif self._spent():
            yield from self._close("budget")

    def push(self, piece: GeneratedToken) -> Iterator[Event]:
        """Take one token of the present request.

        Raises:
            UserError: the model computes NaN or infinity, or the grammar cannot be followed.
        """
        require_spoken(self._info, piece)
        self._drafted += piece.drafted
        if piece.prompt:
            self._prompt_scores = piece.prompt
        if not self._room:  # only the prompt was to be scored
            yield from self._end("length")
            return
        text = piece.text
        if piece.control and not any(text in mark for mark in self._marks):
            text = ""
        if piece.ends:
            yield from self._transcript.push(text)
            yield from self._turn_ended()
            return
        if scored := piece.score if not self._transcript.thinking else None:
            self._scores[len(self._said)] = scored
        loop, events = self._take(piece.token, text)
        yield from events
        if scored:
            yield Scored([scored])
        if self._transcript.stopped:
            yield from self._end("stop")
        elif self._box_at is not None:
            if boxed(self._transcript.answer[self._box_at :]) is not None:
                yield from self._end("stop")
        elif loop and self._left() > self._finish:
            yield from self._roll_back(loop)
        elif self._spent():
            yield from self._close("budget")

    def ran_out(self) -> Iterator[Event]:
        """Take note that the request was continued to its last token."""
        if self._box_at is not None:
            yield from self._turn_ended()
            return
        if self._prompt.style.boxed and self._owes_answer():
            yield from self._transcript.push("}")  # of a box that it began too late
        yield from self._end("length")

    def _turn_ended(self) -> Iterator[Event]:
        """The model has nothing more to say; close its reasoning if it owes an answer."""
        if self._box_at is not None:
            yield from self._transcript.push("}")
            yield from self._end("stop")
        elif self._owes_answer():
            yield from self._close("silence")
        else:
            yield from self._end("stop")

    def _roll_back(self, loop: Loop) -> Iterator[Event]:
        """Take a loop back, and continue with other words, or with the answer."""
        start = max(loop.start, self._floor)
        cycle = [token for token, _ in self._said[start : start + min(loop.period, AVOIDED)]]
        taken_back = len(self._said) - start
        self._discarded += taken_back
        self._restart(self._said[:start])
        yield Rollback(taken_back, self._transcript.reasoning, self._transcript.answer)
        assert self._settings.max_rollbacks is not None
        if self._rollbacks_here < self._settings.max_rollbacks:
            self._rollbacks_here += 1
            self._rollbacks += 1
            self._avoid, self.waiting = cycle, False
        elif self._grammar is not None and not self._transcript.thinking:
            self._finish = self._room
            self._avoid, self.waiting = [], False
        elif self._transcript.thinking or self._owes_answer():
            yield from self._close("loop")
        else:
            yield from self._end("loop")

    def _close(self, reason: ClosingReason) -> Iterator[Event]:
        """Close the reasoning, or open a box where no tag closes it, and ask for the answer."""
        words = self._closing if self._transcript.thinking else self._box
        if len(self._said) + len(words.tokens) >= self._room:
            yield from self._end("length")
            return
        self._closed = reason
        yield Closing(reason)
        for token, text in words.spelled():
            yield from self._take(token, text)[1]
        if words.text.endswith(BOX):
            self._box_at = len(self._transcript.answer) - len(BOX)
        self._floor, self._rollbacks_here = len(self._said), 0
        self._avoid, self.waiting = [], False

    def _end(self, finish_reason: Literal["stop", "length", "loop"]) -> Iterator[Event]:
        yield from self._transcript.finish()
        reasoning, answer = self._transcript.reasoning, self._transcript.answer
        if self._prompt.style.boxed and not answer:
            reasoning, answer = "", reasoning
        self.waiting = False
        self.ended = End(
            finish_reason=finish_reason,
            reasoning=reasoning.strip() if self._prompt.style.tags else reasoning,
            answer=answer,
            final=boxed(reasoning + answer),
            closed=self._closed,
            rollbacks=self._rollbacks,
            prompt_tokens=len(self._prompt.tokens),
            prefilled_tokens=self.prefilled,
            tokens=len(self._said),
            thinking_tokens=self._thinking_tokens,
            discarded_tokens=self._discarded,
            drafted_tokens=self._drafted,
            scores=[score for _, score in sorted(self._scores.items())],
            prompt_scores=self._prompt_scores,
        )
        yield self.ended

    def _restart(self, said: Sequence[tuple[int, str]]) -> None:
        """Begin again with these tokens and their texts."""
        self._scores = {at: score for at, score in self._scores.items() if at < len(said)}
        self._said: list[tuple[int, str]] = []
        style, settings = self._prompt.style, self._settings
        self._transcript = Transcript(style, self._prompt.thinking, settings.stop)
        self._detector = None if settings.max_rollbacks is None else LoopDetector()
        self._thinking_tokens = 0
        for token, text in said:
            self._take(token, text)

    def _take(self, token: int, text: str) -> tuple[Loop | None, Sequence[Event]]:
        """Add a token; returns the loop that it completes, and the events of its text."""
        self._said.append((token, text))
        self._thinking_tokens += self._transcript.thinking
        loop = self._detector.push(token, text) if self._detector else None
        return loop, self._transcript.push(text)

    def _owes_answer(self) -> bool:
        """Whether there has to be an answer, because of a budget, and there is none yet."""
        answer = self._transcript.answer
        silent = not (boxed(answer) if self._prompt.style.boxed else answer.strip())
        return self._budget is not None and (self._transcript.thinking or silent)

    def _left(self) -> int:
        return self._room - len(self._said)

    def _spent(self) -> bool:
        return (
            self._budget is not None
            and self._transcript.thinking
            and self._thinking_tokens >= self._budget
        )


class _Words:
    """A text that is said for the model, as tokens."""

    def __init__(self, engine: Engine, text: str) -> None:
        self.text, self._engine = text, engine

    @cached_property
    def tokens(self) -> list[int]:
        """Its tokens, asked for when they are needed: the engine may be another process."""
        return self._engine.tokenize(self.text) if self.text else []

    def spelled(self) -> list[tuple[int, str]]:
        """The tokens; the last one comes with all of the text."""
        last = len(self.tokens) - 1
        return [(token, self.text if i == last else "") for i, token in enumerate(self.tokens)]
