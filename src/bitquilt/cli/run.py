"""``bitquilt run``: ask a model one question, in the engine it is made for."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitquilt.cli.options import JSON, config_options, print_json, printable, require_model
from bitquilt.cli.talking import IMAGES, Screen, no_text, require_draft, settings, system_prompt
from bitquilt.errors import UserError
from bitquilt.models.sources.resolve import local_path
from bitquilt.runtime.compute import asking
from bitquilt.talk.config import RunConfig

if TYPE_CHECKING:
    from bitquilt.engines import Engine
    from bitquilt.talk.events import End
    from bitquilt.talk.prompt import Prompt
    from bitquilt.talk.sample import AnswerSettings
    from bitquilt.talk.votes import Votes

NO_FINAL = 3
"""The exit code of --final-only where no answer is boxed, and of --votes where there is none."""

INSTEAD = "ask in text, and show an image with --image FILE"


@click.command()
@click.argument("model")
@click.argument("words", metavar="[PROMPT]", nargs=-1)
@config_options(RunConfig)
@JSON
def run(model: str, words: tuple[str, ...], config: RunConfig, as_json: bool) -> None:
    """Ask MODEL a question and print the answer as it comes.

    Without PROMPT, the question is read from standard input. A GGUF file runs in llama.cpp, an MLX
    directory in mlx-lm, and any other MODEL that `quantize` takes in PyTorch. Sampling settings
    that you leave out are those that the model's authors recommend. If they recommend none, the
    model always says the likeliest token (greedy decoding).
    """
    _require_in_order(model, words)
    prompt = words[0] if words else None
    require_draft(model, config.draft)
    from bitquilt.engines import open_engine

    if config.no_chat_template and config.system is not None:
        raise click.UsageError(
            "--system needs the chat template; leave out --system or --no-chat-template"
        )
    if config.no_chat_template and config.image:
        raise click.UsageError(
            "--image needs the chat template; leave out --image or --no-chat-template"
        )
    images = [_image(Path(file)) for file in config.image]
    text = prompt if prompt is not None else _piped()
    _require_utf8(text)
    if not (text if config.no_chat_template else text.strip() or images):
        raise UserError("the prompt is empty; give a question, or leave PROMPT out and pipe it in")
    with asking(threads=config.threads), open_engine(model, config.draft) as engine:
        wanted = settings(engine, config)
        put = _prompt(engine, text, images, config)
        asked = {"model": model, "prompt": text}
        try:
            if config.votes:
                final = _vote(engine, put, wanted, config.votes, asked, as_json)
            else:
                quiet = as_json or config.final_only
                screen = None if quiet else Screen(put.style, config.hide_thinking)
                final = _ask(engine, put, wanted, asked, screen, as_json, config.final_only)
        except KeyboardInterrupt:
            click.echo()
            sys.exit(130)
    if final is None and (config.final_only or config.votes):
        missing = "answer" if config.votes else "boxed answer"
        asking_for_one = "" if config.system else "ask for one with --system boxed, "
        click.echo(
            f"bitquilt: {model} gave no {missing}; {asking_for_one}set a --think-budget, or raise "
            "--max-tokens",
            err=True,
        )
        sys.exit(NO_FINAL)


def _require_in_order(model: str, words: Sequence[str]) -> None:
    """Refuse what is no model, a prompt that stands before it, and one without quotes.

    Raises:
        UserError: it says how the command is written.
    """
    try:
        require_model(model)
    except UserError:
        with suppress(UserError):
            if words and local_path(words[-1]) is not None:
                said = shlex.quote(" ".join([model, *words[:-1]]))
                where = shlex.quote(words[-1])
                raise click.UsageError(
                    f"MODEL comes before PROMPT; write `bitquilt run {where} {said}`"
                ) from None
        raise
    if len(words) > 1:
        said = shlex.join([model, " ".join(words)])
        raise click.UsageError(f"PROMPT has no quotes; write `bitquilt run {said}`")


def _piped() -> str:
    """What standard input holds, if it is not a terminal and can be read."""
    text = None
    try:
        text = None if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    except OSError:
        pass
    except UnicodeDecodeError as error:
        raise no_text("the prompt", error.object, INSTEAD) from None
    if text is None:
        raise click.MissingParameter(param_type="argument", param_hint="'PROMPT'")
    if not text.strip():
        raise UserError("standard input is empty; give PROMPT, or pipe a question in")
    return text


def _require_utf8(text: str) -> None:
    """Refuse bytes that were not text: Python reads them as surrogates in some locales."""
    try:
        text.encode()
    except UnicodeEncodeError:
        data = text.encode(errors="surrogateescape")
        raise no_text("the prompt", data, INSTEAD) from None


def _image(path: Path) -> bytes:
    """The bytes of a file, which must begin as an image does."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"--image={path} cannot be read ({error.strerror}); check the path"
        ) from error
    if not data.startswith(IMAGES):
        raise UserError(f"--image={path} is not an image; give a file of PNG, JPEG, GIF or BMP")
    return data


def _prompt(engine: Engine, text: str, images: Sequence[bytes], config: RunConfig) -> Prompt:
    from bitquilt.talk.prompt import compose, image_mark, plain

    if config.no_chat_template:
        return plain(engine, text)
    messages = [{"role": "user", "content": "\n".join([*map(image_mark, images), text])}]
    if (said := system_prompt(config.system)) is not None:
        messages.insert(0, {"role": "system", "content": said})
    return compose(engine, messages, images=images)


def _ask(
    engine: Engine,
    prompt: Prompt,
    settings: AnswerSettings,
    asked: dict[str, Any],
    screen: Screen | None,
    as_json: bool,
    final_only: bool,
) -> str | None:
    """Ask once and print; returns what is in the box."""
    from bitquilt.talk.events import End
    from bitquilt.talk.session import answer

    started = time.perf_counter()
    for event in answer(engine, prompt, settings):
        if screen:
            screen.show(event)
    assert isinstance(event, End)
    if as_json:
        figures = _figures(event, time.perf_counter() - started)
        print_json({**asked, **figures, "sampling": asdict(settings.sampling)})
    elif final_only and event.final is not None:
        click.echo(printable(event.final))
    return event.final


def _vote(
    engine: Engine,
    prompt: Prompt,
    settings: AnswerSettings,
    count: int,
    asked: dict[str, Any],
    as_json: bool,
) -> str | None:
    """Ask several times at once and print; returns what most samples agree on."""
    from bitquilt.runtime.progress import Progress
    from bitquilt.talk.votes import vote

    if settings.sampling.temperature == 0:
        raise UserError(
            "all greedy answers are the same, so --votes needs a temperature; add --temperature=0.6"
        )
    started = time.perf_counter()
    progress = Progress()
    with progress.stage("Sampling", count):
        votes = vote(engine, prompt, settings, count, progress)
    if as_json:
        said = {
            "final": votes.final,
            "counted": votes.counted,
            "share": votes.share,
            "counts": votes.counts,
            "seconds": round(time.perf_counter() - started, 3),
            "samples": [asdict(sample) for sample in votes.samples],
        }
        print_json({**asked, **said, "sampling": asdict(settings.sampling)})
    elif votes.final is not None:
        click.echo(printable(votes.final))
        if votes.counted == "last line":
            click.echo("no answer is in a box, so the last lines of the answers vote", err=True)
        click.echo(printable(_tally(votes)), err=True)
    return votes.final


def _tally(votes: Votes) -> str:
    """``6 of 8 (75 %); 41: 1, no boxed answer: 1``."""
    count = len(votes.samples)
    first, *others = votes.counts.items()
    silent = count - sum(votes.counts.values())
    nothing = "no boxed answer" if votes.counted == "box" else "no answer"
    rest = [*others, *([(nothing, silent)] if silent else [])]
    if first[1] == 1 and count > 1:
        every = ", ".join(f"{answer}: {n}" for answer, n in [first, *rest])
        cut = sum(end.finish_reason == "length" for end in votes.samples)
        more = f"; {cut} of {count} answers were cut, a larger --max-tokens may help" if cut else ""
        return f"no two answers agree, and the first is printed; {every}{more}"
    said = f"{first[1]} of {count} ({votes.share:.0%})"
    return "; ".join([said, ", ".join(f"{answer}: {n}" for answer, n in rest)] if rest else [said])


def _figures(end: End, seconds: float) -> dict[str, Any]:
    return {**asdict(end), "seconds": round(seconds, 3)}
