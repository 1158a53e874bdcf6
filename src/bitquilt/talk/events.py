"""What happens while a model answers, in the order in which it happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Reasoning:
    """More of the reasoning."""

    text: str


@dataclass(frozen=True)
class Answer:
    """More of the answer."""

    text: str


@dataclass(frozen=True)
class Rescue:
    """The model went round in circles: the end is taken back, and it goes on otherwise."""

    tokens: int
    """Taken back."""
    reasoning: str
    """All of the reasoning that stands."""
    answer: str
    """All of the answer that stands."""


@dataclass(frozen=True)
class Closing:
    """The reasoning was closed from outside, so that the model answers from what it has."""

    why: Literal["budget", "loop", "silence"]
    """The thinking budget was spent; it kept going round in circles; it ended without an answer."""


@dataclass(frozen=True)
class End:
    """The whole of it; the last event of every answer."""

    why: Literal["stop", "length", "loop"]
    """The model ended its turn (or came to a stop string, or to the end of the box that was opened
    for it); ``max_tokens`` or the context were full; it went round in circles and had no thinking
    to close."""
    reasoning: str
    """As far as it can be told apart."""
    answer: str
    """Everything outside the reasoning, or all that was said where no answer can be told apart."""
    final: str | None
    """What is in the last ``\\boxed{}``."""
    closed: Literal["budget", "loop", "silence"] | None
    """Why the reasoning was closed from outside, if it was."""
    rescues: int
    prompt_tokens: int
    fed_tokens: int
    """Prompt tokens that were computed: the others were still there from the turn before."""
    tokens: int
    """That stand: what the model said, and what was said for it to close the reasoning."""
    thinking_tokens: int
    """Those of them that are reasoning."""
    discarded_tokens: int
    """Taken back."""


Event = Reasoning | Answer | Rescue | Closing | End
