"""Reasoning apart from the answer, as the text comes.

Families mark their reasoning in different ways. Most write it between tags. Magistral's tags are
control tokens, which arrive here as their names, so tags that are spelled out as text read the
same. MobileLLM-R1 marks nothing: its reasoning runs up to the box.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

BOX = "\\boxed{"

AnswerPart = Literal["reasoning", "answer"]


@dataclass(frozen=True)
class ReasoningStyle:
    """How a model marks its reasoning."""

    opens: str | None
    """What it writes before its reasoning; None where the reasoning needs no opening."""
    closes: str | None
    """What it writes after its reasoning; None where everything is answer. A box belongs to the
    answer."""
    closing: str
    """What is said for the model to close its reasoning."""
    heads: tuple[str, ...] = ()
    """What it may write before its answer, which is no part of it."""

    @property
    def boxed(self) -> bool:
        """Whether the reasoning runs up to the box."""
        return self.closes == BOX

    @property
    def tags(self) -> tuple[str, ...]:
        """The names of control tokens that belong to the text."""
        tags = (self.opens, self.closes, *self.heads)
        return tuple(tag for tag in tags if tag and not self.boxed)


HURRY = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the "
    "thinking directly now.\n"
)
"""What Qwen3's authors say for a model whose thinking budget is spent (arXiv 2505.09388, 4.3)."""
THINK = ReasoningStyle("<think>", "</think>", HURRY + "</think>\n\n")
MAGISTRAL = ReasoningStyle("[THINK]", "[/THINK]", HURRY + "[/THINK]")
_FINAL = "<|channel|>final<|message|>"
CHANNELS = ReasoningStyle(
    "<|channel|>analysis<|message|>",
    "<|end|>",
    f"{HURRY}<|end|><|start|>assistant{_FINAL}",
    (f"<|start|>assistant{_FINAL}", _FINAL),
)
"""Of gpt-oss, which writes each part of its answer to a channel."""
UP_TO_BOX = ReasoningStyle(None, BOX, "\n\n" + BOX)
PLAIN = ReasoningStyle(None, None, "")


def style_of(template: str | None, prompt: str) -> ReasoningStyle:
    """How a model marks its reasoning, by what its chat template and its prompt contain.

    Args:
        template: Jinja source.
        prompt: the rendered prompt, which may ask for a box as MobileLLM-R1's does.
    """
    if template and "<|channel|>analysis" in template:
        return CHANNELS
    for style in (MAGISTRAL, THINK):
        if template and style.closes and style.closes in template:
            return style
    return UP_TO_BOX if template and "\\boxed" in prompt else PLAIN


def opened_by(turn: str, style: ReasoningStyle) -> bool:
    """Whether the model begins inside its reasoning.

    Args:
        turn: the end of the prompt that opens the assistant's turn: the only part of it that
            counts, for the tags may be quoted anywhere else.
        style: of the model.
    """
    if style.boxed:
        return True
    return bool(style.tags) and turn.rfind(style.tags[0]) > turn.rfind(style.tags[1])


class Splitter:
    """Cuts a stream of text into reasoning and answer, however the text is cut into pieces.

    An opening tag counts only at the very beginning, a closing one only inside the reasoning.
    """

    def __init__(self, style: ReasoningStyle, thinking: bool) -> None:
        """``thinking`` says whether the text begins inside the reasoning."""
        self.thinking = thinking
        self._style = style
        self._held = ""
        self._blank = bool(style.tags)
        """White space is left out: nothing else has come since the part began, beside its tag."""
        self._may_open = not thinking and style.opens is not None
        self._may_head = bool(style.heads)
        """Nothing of the answer has come yet but what may be its head."""

    def push(self, text: str) -> Iterator[tuple[AnswerPart, str]]:
        """Take more text; returns the parts that are certain by now."""
        self._held += text
        while (tag := self._awaited()) is not None:
            before, found, after = self._held.partition(tag)
            if found and not (self._may_open and before.strip()):
                yield from self._say(before)
                self._held = (tag if tag == BOX else "") + after
                self.thinking, self._may_open = not self.thinking, False
                self._blank = tag != BOX
                continue
            if self._may_open and not tag.startswith(self._held.lstrip()[: len(tag)]):
                self._may_open = False
                continue
            keep = overlap(self._held, tag)
            if self._may_open:
                keep = len(self._held)
            yield from self._say(self._held[: len(self._held) - keep])
            self._held = self._held[len(self._held) - keep :]
            return
        if self._may_head and not self._past_head():
            return
        yield from self._say(self._held)
        self._held = ""

    def _past_head(self) -> bool:
        """Leave the head of the answer out; returns whether all of it, or none, has come."""
        held = self._held.lstrip()
        head = next((head for head in self._style.heads if held.startswith(head)), "")
        if not head and any(one.startswith(held) for one in self._style.heads):
            return False
        self._held, self._may_head = held[len(head) :], False
        return True

    def rest(self) -> Iterator[tuple[AnswerPart, str]]:
        """End the text; returns what had been held back."""
        yield from self._say(self._held)
        self._held = ""

    def _awaited(self) -> str | None:
        """The tag that would change the part."""
        if self._may_open:
            return self._style.opens
        return self._style.closes if self.thinking else None

    def _say(self, text: str) -> Iterator[tuple[AnswerPart, str]]:
        """Text of the present part, without white space around tags."""
        if self._blank:
            text = text.lstrip()
        if text:
            self._blank = False
            yield ("reasoning" if self.thinking else "answer"), text


def overlap(text: str, tag: str) -> int:
    """The length of the longest end of a text that is a beginning of a tag."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)


def boxed(text: str) -> str | None:
    r"""What is in the last complete ``\boxed{…}``, braces nested, escaped braces not counted."""
    start = text.rfind(BOX)
    while start >= 0:
        if (end := _closing_brace(text, start + len(BOX))) is not None:
            return text[start + len(BOX) : end].strip()
        start = text.rfind(BOX, 0, start)
    return None


def _closing_brace(text: str, start: int) -> int | None:
    depth, place = 1, start
    while place < len(text):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return place
        place += 2 if text[place] == "\\" else 1
    return None
