"""What ``run`` and ``chat`` share: how to answer, and the answer as it appears on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bitquilt.cli.options import Finite

if TYPE_CHECKING:
    from bitquilt.engines import Engine
    from bitquilt.talk import End, Event, Settings
    from bitquilt.talk.reasoning import Style

Command = TypeVar("Command", bound=Callable[..., Any])

SYSTEM = click.option(
    "--system",
    metavar="TEXT|NAME",
    help='System prompt; "" for none, `boxed` or `magistral` for those of MobileLLM-R1 and '
    "Magistral. [default: what the chat template puts in]",
)
HIDE_THINKING = click.option("--hide-thinking", is_flag=True, help="Show the answer alone.")

_ANSWERING = (
    click.option("--temperature", type=Finite(min=0), help="0 is greedy."),
    click.option("--top-p", type=Finite(0, 1), help="Keep the likeliest P of all."),
    click.option("--top-k", type=click.IntRange(min=0), help="Keep the K likeliest; 0 keeps all."),
    click.option("--min-p", type=Finite(0, 1), help="Keep what is P times as likely as the first."),
    click.option(
        "--repetition-penalty",
        type=Finite(min=0, min_open=True),
        help="Divides the logits of what was there; 1 is none.",
    ),
    click.option(
        "--frequency-penalty", type=Finite(), help="Taken from a logit for each time it was said."
    ),
    click.option(
        "--presence-penalty", type=Finite(), help="Taken from the logits of what was said."
    ),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        default=4096,
        show_default=True,
        help="Of one answer, reasoning included.",
    ),
    click.option(
        "--think-budget",
        type=click.IntRange(min=0),
        help="Tokens of reasoning after which it is closed and the model answers.",
    ),
    click.option("--stop", multiple=True, help="End the answer before this text; repeatable."),
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
    """The options of :func:`settings`."""
    for option in reversed(_ANSWERING):
        command = option(command)
    return command


def settings(engine: Engine, given: dict[str, Any]) -> Settings:
    """How to answer: what was given, and the model's own recommendation for the rest."""
    from bitquilt.talk import Settings

    stated = {name: given[name] for name in SAMPLING if given[name] is not None}
    return Settings(
        replace(engine.info.sampling, **stated),
        given["max_tokens"],
        given["think_budget"],
        given["stop"],
    )


def system_prompt(system: str | None) -> str | None:
    """The text behind a name, or the text itself."""
    from bitquilt.talk.prompt import SYSTEM_PROMPTS

    return None if system is None else SYSTEM_PROMPTS.get(system, system)


class Screen:
    """Shows an answer as it comes: text on stdout, what happens to it on stderr."""

    def __init__(self, style: Style, hide_thinking: bool) -> None:
        """Where the style has tags, lines stand for them."""
        self._hide, self._tags = hide_thinking, bool(style.tags)
        self._part = ""
        self._shown = False

    def show(self, event: Event) -> None:
        """Show what there is to see of an event."""
        from bitquilt.talk import Answer, Closing, End, Reasoning, Rescue

        match event:
            case Reasoning(text):
                self._write("reasoning", text)
            case Answer(text):
                self._write("answer", text)
            case Rescue(tokens):
                self._note(f"went round in circles: {tokens} tokens taken back")
            case Closing(why):
                self._note(f"thinking closed: {CLOSED[why]}")
            case End():
                self._finish(event)

    def _write(self, part: str, text: str) -> None:
        if part == "reasoning" and self._hide:
            return
        if part != self._part and self._part and self._tags:
            click.echo("\n")
        self._part, self._shown = part, True
        # click leaves colours out where stdout is no terminal
        click.echo(click.style(text, dim=True) if part == "reasoning" else text, nl=False)
        sys.stdout.flush()

    def _finish(self, end: End) -> None:
        if not self._shown:
            click.echo(end.answer, nl=False)
        click.echo()
        if end.why == "length":
            self._note(f"stopped after {end.tokens} tokens; ask for more with --max-tokens")
        if end.why == "loop":
            self._note("stopped: it kept going round in circles")

    def _note(self, text: str) -> None:
        if self._part:
            click.echo()
        click.echo(click.style(f"[{text}]", dim=True, italic=True), err=True)


CLOSED = {
    "budget": "its budget is spent",
    "loop": "it kept going round in circles",
    "silence": "it ended without an answer",
}
