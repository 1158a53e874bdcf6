"""One sample of an answer: tokens in, events out, and an end that always comes.

The state of a sample is the tokens that stand. Whatever befalls it, a loop taken back or the
thinking closed, makes these other tokens, which are then continued in another leg; so an engine
need not know of any of it. :mod:`.session` brings samples and engines together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bitquilt.engines import Engine, GeneratedToken, GenerationRequest, Sampling
from bitquilt.errors import UserError
from bitquilt.talk.events import Closing, ClosingReason, End, Event, Rollback
from bitquilt.talk.loop_detector import Loop, LoopDetector
from bitquilt.talk.prompt import Prompt
from bitquilt.talk.reasoning import BOX, boxed
from bitquilt.talk.transcript import Transcript

ANSWER_ROOM = 256
"""Tokens kept for the answer when the thinking has a budget, or half of all where that is less."""
BOX_ROOM = 64
"""Tokens that a box may take which was opened for the model; then it is closed for it too."""
AVOIDED = 64
"""Tokens of a loop, at most, that are made unlikely after it was taken back."""
LEG_SEEDS = 1 << 32
"""Between the seeds of one sample's legs; the seeds of several samples follow each other."""


@dataclass(frozen=True)
class AnswerSettings:
    """How to answer."""

    sampling: Sampling
    max_tokens: int = 4096
    """Of an answer, reasoning included; less where the model's context ends before."""
    think_budget: int | None = None
    """Tokens of reasoning after which it is closed; with one, there always is an answer."""
    stop: Sequence[str] = ()
    """The answer ends before the first of these; they are not looked for in the reasoning."""
    max_rollbacks: int | None = 3
    """How often to go back from a loop before the thinking is closed; None lets it loop."""


class Sample:
    """One answer in the making.

    While it has not :attr:`ended`: continue its :meth:`request`, :meth:`push` what comes for as
    long as it is :attr:`waiting`, and say when the request :meth:`ran_out`.
    """

    def __init__(self, engine: Engine, prompt: Prompt, settings: AnswerSettings) -> None:
        """Prepare an answer.

        Raises:
            UserError: the prompt fills the model's context.
        """
        self.ended: End | None = None
        self.waiting = False
        """Whether more of the present request is wanted."""
        self.prefilled = 0
        """Prompt tokens that the engine computed."""
        self._prompt, self._settings = prompt, settings
        self._closing = _Words(engine, prompt.style.closing)
        self._box = _Words(engine, BOX)
        self._room = min(settings.max_tokens, engine.info.context - len(prompt.tokens))
        if self._room < 1:
            raise UserError(
                f"the conversation is {len(prompt.tokens):,} tokens long and the model reads "
                f"{engine.info.context:,}; ask something shorter, or begin anew"
            )
        self._budget = _thinking_room(settings.think_budget, self._room, len(self._closing.tokens))
        self._legs = self._rollbacks = self._rollbacks_here = self._discarded = 0
        self._avoid: list[int] = []
        self._closed: ClosingReason | None = None
        self._box_at: int | None = None
        self._floor = 0
        self._take_anew([])

    def request(self) -> GenerationRequest:
        """What to continue, and for how long."""
        sampling, leg = self._settings.sampling, self._legs
        self._legs, self.waiting = leg + 1, True
        left = self._room - len(self._said)
        return GenerationRequest(
            tokens=[*self._prompt.tokens, *(token for token, _ in self._said)],
            sampling=replace(sampling, seed=sampling.seed + leg * LEG_SEEDS),
            max_tokens=left if self._box_at is None else min(left, BOX_ROOM),
            said=len(self._said),
            avoid=self._avoid,
        )

    def begin(self) -> Iterator[Event]:
        """What happens before the first request: without any budget the thinking is closed."""
        if self._spent():
            yield from self._close("budget")

    def push(self, piece: GeneratedToken) -> Iterator[Event]:
        """Take one token of the present request."""
        text = piece.text
        if piece.control and text not in self._prompt.style.tags:
            text = ""
        if piece.ends:
            yield from self._transcript.push(text)
            yield from self._turn_ended()
            return
        loop, events = self._take(piece.token, text)
        yield from events
        if self._transcript.stopped:
            yield from self._end("stop")
        elif self._box_at is not None:
            if boxed(self._transcript.answer[self._box_at :]) is not None:
                yield from self._end("stop")
        elif loop:
            yield from self._go_back(loop)
        elif self._spent():
            yield from self._close("budget")

    def ran_out(self) -> Iterator[Event]:
        """The request was continued to its last token."""
        if self._box_at is not None:
            yield from self._turn_ended()
            return
        if self._prompt.style.boxed and self._owes_answer():
            yield from self._transcript.push("}")  # of a box that it began too late
        yield from self._end("length")

    def _turn_ended(self) -> Iterator[Event]:
        """The model has nothing more to say: is that an answer?"""
        if self._box_at is not None:
            yield from self._transcript.push("}")
            yield from self._end("stop")
        elif self._owes_answer():
            yield from self._close("silence")
        else:
            yield from self._end("stop")

    def _go_back(self, loop: Loop) -> Iterator[Event]:
        """Take a loop back, and go on otherwise: with other words, or with the answer."""
        start = max(loop.start, self._floor)
        cycle = [token for token, _ in self._said[start : start + min(loop.period, AVOIDED)]]
        taken_back = len(self._said) - start
        self._discarded += taken_back
        self._take_anew(self._said[:start])
        yield Rollback(taken_back, self._transcript.reasoning, self._transcript.answer)
        assert self._settings.max_rollbacks is not None
        if self._rollbacks_here < self._settings.max_rollbacks:
            self._rollbacks_here += 1
            self._rollbacks += 1
            self._avoid, self.waiting = cycle, False
        elif self._transcript.thinking or self._owes_answer():
            yield from self._close("loop")
        else:
            yield from self._end("loop")

    def _close(self, reason: ClosingReason) -> Iterator[Event]:
        """Close the thinking, or open a box where there is none to close, and ask for the rest."""
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
        )
        yield self.ended

    def _take_anew(self, said: Sequence[tuple[int, str]]) -> None:
        """Let only these tokens stand, with their texts."""
        self._said: list[tuple[int, str]] = []
        style, settings = self._prompt.style, self._settings
        self._transcript = Transcript(style, self._prompt.thinking, settings.stop)
        self._detector = None if settings.max_rollbacks is None else LoopDetector()
        self._thinking_tokens = 0
        for token, text in said:
            self._take(token, text)

    def _take(self, token: int, text: str) -> tuple[Loop | None, Sequence[Event]]:
        """Let a token stand; the loop that it completes, and what is new of the text."""
        self._said.append((token, text))
        self._thinking_tokens += self._transcript.thinking
        loop = self._detector.push(token, text) if self._detector else None
        return loop, self._transcript.push(text)

    def _owes_answer(self) -> bool:
        """Whether there is none yet, and with a budget there has to be."""
        answer = self._transcript.answer
        silent = not (boxed(answer) if self._prompt.style.boxed else answer.strip())
        return self._budget is not None and (self._transcript.thinking or silent)

    def _spent(self) -> bool:
        return (
            self._budget is not None
            and self._transcript.thinking
            and self._thinking_tokens >= self._budget
        )


class _Words:
    """Something that is said for the model."""

    def __init__(self, engine: Engine, text: str) -> None:
        self.text = text
        self.tokens = engine.tokenize(text) if text else []

    def spelled(self) -> list[tuple[int, str]]:
        """Its tokens, all of the text with the last."""
        last = len(self.tokens) - 1
        return [(token, self.text if i == last else "") for i, token in enumerate(self.tokens)]


def _thinking_room(budget: int | None, room: int, closing: int) -> int | None:
    """Tokens to think in, so that room for closing the thinking and for an answer is left."""
    if budget is None:
        return None
    return max(0, min(budget, room - closing - min(ANSWER_ROOM, room // 2)))
