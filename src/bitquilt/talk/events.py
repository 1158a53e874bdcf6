"""What happens while a model answers, in the order in which it happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bitquilt.engines import TokenScore

ClosingReason = Literal["budget", "loop", "silence"]
"""The thinking budget was spent; the model kept repeating itself; it ended without an answer."""


@dataclass(frozen=True)
class Reasoning:
    """The next piece of the reasoning."""

    text: str


@dataclass(frozen=True)
class Answer:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True)
class Rollback:
    """The model repeated itself: the repetition is taken back, and the model goes on from there."""

    tokens: int
    """How many tokens are taken back."""
    reasoning: str
    """All of the reasoning that is left."""
    answer: str
    """All of the answer that is left."""


@dataclass(frozen=True)
class Closing:
    """The reasoning was closed for the model, so that it answers from what it has."""

    reason: ClosingReason


@dataclass(frozen=True)
class Scored:
    """How likely the next tokens of the answer were; comes behind their text, if asked for."""

    scores: Sequence[TokenScore]


@dataclass(frozen=True, kw_only=True)
class End:
    """The whole answer; the last event of every answer."""

    finish_reason: Literal["stop", "length", "loop"]
    """``stop``: the model ended its turn, or came to a stop string, or to the end of the box that
    was opened for it. ``length``: ``max_tokens`` or the context is full. ``loop``: the model kept
    repeating itself and had no reasoning to close."""
    reasoning: str
    """The reasoning, as far as it can be told apart."""
    answer: str
    """Everything outside the reasoning, or all the text where no answer can be told apart."""
    final: str | None
    """What is in the last ``\\boxed{}``."""
    closed: ClosingReason | None
    """Why the reasoning was closed for the model, if it was."""
    rollbacks: int
    """How often a repetition was taken back."""
    prompt_tokens: int
    """How many tokens the prompt has."""
    prefilled_tokens: int
    """Prompt tokens that were computed; the others were still there from the turn before."""
    tokens: int
    """Tokens of the answer: what the model said, and what was said for it to close the
    reasoning."""
    thinking_tokens: int
    """How many of those tokens are reasoning."""
    discarded_tokens: int
    """How many tokens were taken back in rollbacks; ``tokens`` does not count them."""

    drafted_tokens: int = 0
    """How many of all tokens that the model said, those that were taken back too, a draft model had
    said ahead."""
    scores: Sequence[TokenScore] = ()
    """How likely the answer's tokens were, if asked for."""
    prompt_scores: Sequence[TokenScore] = ()
    """How likely the prompt's tokens were, but for the first, if asked for."""


Event = Reasoning | Answer | Scored | Rollback | Closing | End
