"""What ``run`` and ``chat`` share: settings for answers, and answers on a terminal."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import printable, require_model
from bitquilt.engines import require_draft_format
from bitquilt.errors import UserError
from bitquilt.evaluation.file_format import format_of

if TYPE_CHECKING:
    from bitquilt.engines import Engine
    from bitquilt.talk.config import AnswerConfig
    from bitquilt.talk.events import End, Event
    from bitquilt.talk.reasoning import ReasoningStyle
    from bitquilt.talk.sample import AnswerSettings


def settings(engine: Engine, config: AnswerConfig) -> AnswerSettings:
    """The settings that were given, and the model's own recommendation for the rest."""
    from bitquilt.engines import Sampling
    from bitquilt.talk.sample import AnswerSettings

    given = {field.name: getattr(config, field.name) for field in fields(Sampling)}
    stated = {name: value for name, value in given.items() if value is not None}
    return AnswerSettings(
        sampling=replace(engine.info.sampling, **stated),
        max_tokens=config.max_tokens,
        think_budget=config.think_budget,
        stop=config.stop,
    )


def require_draft(model: str, draft: str | None) -> None:
    """Refuse what cannot be a draft model of MODEL, before anything heavy is imported.

    Raises:
        UserError: it is neither a GGUF file nor an MLX directory, or of another kind than MODEL.
    """
    if draft is not None:
        format_of(draft)
        if not Path(model).exists():
            require_model(model)
        require_draft_format(Path(model), Path(draft))
        require_model(draft)


IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
"""What files of images begin with: PNG, JPEG, GIF, WebP, BMP and TIFF."""


def no_text(what: str, data: bytes, instead: str) -> UserError:
    """The refusal of bytes that are no text in UTF-8.

    Args:
        what: the words that name them.
        data: all of them, or the first.
        instead: what to do.
    """
    if data.startswith(IMAGES):
        return UserError(f"{what} is an image, not text; {instead}")
    return UserError(f"{what} is not UTF-8 text; {instead}, or convert it with iconv -t UTF-8")


def system_prompt(system: str | None) -> str | None:
    """The text behind a name, or the text itself."""
    from bitquilt.talk.prompt import SYSTEM_PROMPTS

    return None if system is None else SYSTEM_PROMPTS.get(system, system)


class Screen:
    """Shows an answer as it comes: text on stdout, what happens to it on stderr."""

    def __init__(self, style: ReasoningStyle, hide_thinking: bool) -> None:
        """Begin an answer; where the style has tags, an empty line stands for each."""
        self._hide, self._tags = hide_thinking, bool(style.tags)
        self._part = ""
        self._shown = False

    def show(self, event: Event) -> None:
        """Show an event, if there is anything to see."""
        from bitquilt.talk.events import Answer, Closing, End, Reasoning, Rollback

        match event:
            case Reasoning(text):
                self._write("reasoning", text)
            case Answer(text):
                self._write("answer", text)
            case Rollback(tokens):
                self._note(f"the model repeated itself: {tokens} tokens were taken back")
            case Closing(reason):
                self._note(f"the reasoning was closed: {CLOSED[reason]}")
            case End():
                self._finish(event)

    def _write(self, part: str, text: str) -> None:
        if part == "reasoning" and self._hide:
            return
        text = printable(text)
        if part != self._part and self._part and self._tags:
            click.echo("\n")
        self._part, self._shown = part, True
        # click leaves colours out where stdout is not a terminal
        click.echo(click.style(text, dim=True) if part == "reasoning" else text, nl=False)
        sys.stdout.flush()

    def _finish(self, end: End) -> None:
        if not self._shown:
            click.echo(printable(end.answer), nl=False)
        click.echo()
        if end.finish_reason == "length":
            tokens = f"{end.tokens} token{'s' if end.tokens > 1 else ''}"
            self._note(f"the answer was cut after {tokens}; allow more with --max-tokens")
        if end.drafted_tokens:
            self._note(f"{end.drafted_tokens} of the {end.tokens} tokens are from the draft model")
        if end.finish_reason == "loop":
            self._note("the answer was ended: the model kept repeating itself")

    def _note(self, text: str) -> None:
        if self._part:
            click.echo()
        click.echo(click.style(f"[{text}]", dim=True, italic=True), err=True)


CLOSED = {
    "budget": "its budget is spent",
    "loop": "the model kept repeating itself",
    "silence": "the model ended without an answer",
}
