"""What ``run`` and ``chat`` share: options for answers, and answers on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bitquilt.cli.options import Finite

if TYPE_CHECKING:
    from bitquilt.engines import Engine
    from bitquilt.talk import AnswerSettings, End, Event
    from bitquilt.talk.reasoning import ReasoningStyle

Command = TypeVar("Command", bound=Callable[..., Any])

SYSTEM = click.option(
    "--system",
    metavar="TEXT|NAME",
    help='The system prompt: a text, "" for none, or the name of a known one: `boxed` is '
    "MobileLLM-R1's for problems with one answer, `magistral` is Magistral's.  "
    "[default: what the chat template puts in]",
)
HIDE_THINKING = click.option(
    "--hide-thinking", is_flag=True, help="Show the answer without the reasoning."
)


def _texts(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse an empty text, which every answer would end before."""
    if "" in texts:
        raise click.BadParameter("the text is empty")
    return texts


_ANSWERING = (
    click.option(
        "--temperature", type=Finite(min=0), help="Divide the logits by this; 0 is greedy decoding."
    ),
    click.option(
        "--top-p",
        type=Finite(0, 1),
        help="Draw from the likeliest tokens that together reach this probability.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(min=0),
        help="Draw from this many of the likeliest tokens; 0 keeps all.",
    ),
    click.option(
        "--min-p",
        type=Finite(0, 1),
        help="Drop tokens that are less likely than this fraction of the likeliest one.",
    ),
    click.option(
        "--repetition-penalty",
        type=Finite(min=0, min_open=True),
        help="Make tokens of the prompt and the answer less likely by this factor; 1 does nothing.",
    ),
    click.option(
        "--frequency-penalty",
        type=Finite(),
        help="Take this from the logit of a token for each time that the model said it.",
    ),
    click.option(
        "--presence-penalty",
        type=Finite(),
        help="Take this from the logits of all tokens that the model said.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="The same seed and settings give the same answer.",
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        default=4096,
        show_default=True,
        help="An answer has at most this many tokens, reasoning included.",
    ),
    click.option(
        "--think-budget",
        type=click.IntRange(min=0),
        help="After this many tokens, close the reasoning, so that the model answers.",
    ),
    click.option(
        "--stop",
        multiple=True,
        callback=_texts,
        help="End the answer before this text; the option can be repeated.",
    ),
)
SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "seed",
)


def answering(command: Command) -> Command:
    """Give a command the options that :func:`settings` reads."""
    for option in reversed(_ANSWERING):
        command = option(command)
    return command


def settings(engine: Engine, given: dict[str, Any]) -> AnswerSettings:
    """The settings that were given, and the model's own recommendation for the rest."""
    from bitquilt.talk import AnswerSettings

    stated = {name: given[name] for name in SAMPLING if given[name] is not None}
    return AnswerSettings(
        sampling=replace(engine.info.sampling, **stated),
        max_tokens=given["max_tokens"],
        think_budget=given["think_budget"],
        stop=given["stop"],
    )


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
        from bitquilt.talk import Answer, Closing, End, Reasoning, Rollback

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
        if part != self._part and self._part and self._tags:
            click.echo("\n")
        self._part, self._shown = part, True
        # click leaves colours out where stdout is not a terminal
        click.echo(click.style(text, dim=True) if part == "reasoning" else text, nl=False)
        sys.stdout.flush()

    def _finish(self, end: End) -> None:
        if not self._shown:
            click.echo(end.answer, nl=False)
        click.echo()
        if end.finish_reason == "length":
            self._note(
                f"the answer was cut after {end.tokens} tokens; allow more with --max-tokens"
            )
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
