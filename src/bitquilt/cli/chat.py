"""``bitquilt chat``: a conversation in a terminal."""

from __future__ import annotations

import base64
import json
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from bitquilt.cli.options import MODEL, config_options, printable
from bitquilt.cli.talking import IMAGES, Screen, no_text, settings, system_prompt
from bitquilt.errors import EngineCrashedError, UserError
from bitquilt.runtime.compute import asking
from bitquilt.runtime.files import atomic_write, read_json
from bitquilt.talk.config import AnswerConfig

if sys.platform != "win32":
    import termios

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion

    from bitquilt.talk.session import Session

HELP = """\
/system [TEXT]   show the system prompt, or set it; "" is none, and boxed and
                 magistral are prompts that ask for reasoning
/reset           begin a new conversation
/regenerate      answer the last question again, with another seed
/file FILE       put a text file or an image before the next question
/save FILE       save the conversation to a file
/load FILE       continue a conversation that was saved
/stats           show the length and the speed of the last answer
/help            show this list
/quit            leave, as Ctrl-D does
Alt-Enter begins a new line, Ctrl-R searches what was typed before, and Ctrl-C
stops an answer."""
_WITH_FILES = ("/file", "/save", "/load")


@click.command()
@MODEL
@config_options(AnswerConfig)
def chat(model: str, config: AnswerConfig) -> None:
    """Talk with MODEL in the terminal.

    MODEL is what `run` takes. Sampling settings that you leave out are the model's own; a model
    that recommends none decodes greedily. In the conversation, /help lists the commands.
    """
    from bitquilt.engines import open_engine
    from bitquilt.talk.session import Session

    with asking(threads=config.threads):
        engine = open_engine(model)
        session = Session(engine, settings(engine, config), system_prompt(config.system))
        _talk(model, session, config.hide_thinking)


def _talk(model: str, session: Session, hide_thinking: bool) -> None:
    """Talk until there is nothing more to say.

    Raises:
        UserError: the model has no chat template.
    """
    try:
        if session.engine.info.template(tools=False) is None:
            raise UserError(
                f"{model} has no chat template, so it cannot hold a conversation; continue plain "
                f"text with `bitquilt run {shlex.quote(model)} TEXT --no-chat-template`"
            )
        click.echo(f"{model} is ready. Type a question, or /help for the commands.", err=True)
        with _CtrlC() as ctrl_c:
            talk = Conversation(model, session, hide_thinking, ctrl_c)
            for line in _lines():
                if not talk.take(line.strip()):
                    break
    finally:
        session.engine.close()


class Conversation:
    """A conversation that the lines of a terminal drive."""

    def __init__(self, model: str, session: Session, hide_thinking: bool, ctrl_c: _CtrlC) -> None:
        self._model, self._session, self._hide = model, session, hide_thinking
        self._ctrl_c = ctrl_c
        self._asked: str | None = None
        self._files: list[str] = []
        """What stands before the next question."""
        self._seconds = 0.0
        self._commands: dict[str, Callable[[str], object]] = {
            "/system": self._system,
            "/reset": self._reset,
            "/regenerate": self._regenerate,
            "/file": self._file,
            "/save": self._save,
            "/load": self._load,
            "/stats": self._stats,
            "/help": lambda _: click.echo(HELP),
        }

    def take(self, line: str) -> bool:
        """Do what one line asks for; returns whether to go on."""
        verb, _, rest = line.partition(" ")
        if verb == "/quit":
            return False
        try:
            if verb in self._commands:
                self._commands[verb](rest.strip())
            elif line.startswith("/"):
                _note(f"{verb} is not a command; /help lists the commands")
            elif line:
                self._ask("\n\n".join([*self._files, line]))
        except UserError as error:
            _note(str(error))
            if isinstance(error, EngineCrashedError):
                self._reopen()
        return True

    def _ask(self, text: str) -> None:
        self._asked, self._files, started = text, [], time.perf_counter()
        screen = Screen(self._session.prompt(text).style, self._hide)
        self._ctrl_c.pressed = 0
        with typed_unseen(), closing(self._session.ask(text)) as events:
            for event in events:
                screen.show(event)
                if self._ctrl_c.pressed:
                    click.echo()
                    _note("the answer was stopped and is not kept; /regenerate asks again")
                    return
        self._seconds = time.perf_counter() - started

    def _reopen(self) -> None:
        """Start the engine again after a crash; the conversation is still here."""
        from bitquilt.engines import open_engine

        self._session.engine.close()
        self._session.engine = open_engine(self._model)
        _note("the engine was restarted; the conversation is kept")

    def _system(self, text: str) -> None:
        if text:
            self._session.system = system_prompt("" if text in ('""', "''") else text)
        system = self._session.system
        if system is None:
            _note("the system prompt is the chat template's own")
        else:
            _note(f"the system prompt is: {system}" if system else "there is no system prompt")

    def _reset(self, _: str) -> None:
        self._session.messages, self._session.images, self._files = [], [], []
        _note("this is a new conversation")

    def _regenerate(self, _: str) -> None:
        if self._session.messages and self._session.messages[-2]["content"] == self._asked:
            self._session.retract()
        if self._asked is None:
            raise UserError("nothing has been asked yet; type a question first")
        settings = self._session.settings
        again = replace(settings.sampling, seed=settings.sampling.seed + 1)
        self._session.settings = replace(settings, sampling=again)
        self._ask(self._asked)

    def _file(self, name: str) -> None:
        path = _path(name, "/file FILE")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}; name a text file") from error
        tokens = self._show(data) if data.startswith(IMAGES) else self._quote(path, data)
        _note(f"{path.name} has {tokens:,} tokens and stands before the next question")

    def _show(self, image: bytes) -> int:
        """Show the model an image; returns how many tokens it takes."""
        from bitquilt.talk.prompt import image_mark, require_sight

        engine = self._session.engine
        require_sight(engine.info)
        tokens = len(engine.see(image))
        self._session.images.append(image)
        self._files.append(image_mark(image))
        return tokens

    def _quote(self, path: Path, data: bytes) -> int:
        """Put a text before the question; returns how many tokens it has."""
        try:
            text = data.decode().replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise no_text(str(path), data, "name a text file or an image") from error
        self._files.append(quoted_file(path.name, text))
        return len(self._session.engine.tokenize(text))

    def _save(self, name: str) -> None:
        path = _path(name, "/save FILE")
        session = self._session
        images = [base64.b64encode(image).decode() for image in session.images]
        kept = {"system": session.system, "messages": session.messages, "images": images}
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(kept, indent=2, ensure_ascii=False), encoding="utf-8")
        _note(f"the conversation was saved to {path}")

    def _load(self, name: str) -> None:
        from bitquilt.talk.prompt import require_sight

        path = _path(name, "/load FILE")
        kept = read_json(path)
        messages = kept.get("messages")
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise UserError(f"{path} does not hold a conversation; /load a file that /save wrote")
        images = _images(path, kept.get("images", []))
        if images:
            require_sight(self._session.engine.info)
        self._session.system, self._session.messages = kept.get("system"), messages
        self._session.images, self._files = images, []
        self._asked = next((m["content"] for m in messages[-2:-1]), None)
        count = len(messages) // 2
        said = "1 question and its answer" if count == 1 else f"{count} questions and their answers"
        _note(f"the conversation has {said}")

    def _stats(self, _: str) -> None:
        end = self._session.last
        if end is None:
            raise UserError("nothing has been answered yet; type a question first")
        generated = end.tokens + end.discarded_tokens
        _note(
            f"{end.tokens} tokens, {end.thinking_tokens} of them reasoning, "
            f"{generated / max(self._seconds, 1e-9):.1f} tokens/s; {end.rollbacks} loops taken "
            f"back; the conversation has {end.prompt_tokens + end.tokens} tokens, and "
            f"{end.prefilled_tokens} of them were read for this answer"
        )


def quoted_file(name: str, text: str) -> str:
    """A file as a part of a question, in a fence that is longer than any inside."""
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{name}:\n{fence}\n{text.rstrip()}\n{fence}"


def _path(name: str, usage: str) -> Path:
    if not name:
        raise UserError(f"the file's name is missing; type {usage}")
    return Path(name).expanduser()


def _is_message(message: object) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in ("user", "assistant")
        and isinstance(message.get("content"), str)
    )


def _images(path: Path, coded: Any) -> list[bytes]:
    """The images of a saved conversation, which :meth:`Conversation._save` coded."""
    try:
        return [base64.b64decode(image, validate=True) for image in coded]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path} has images that cannot be read; /load a file that /save wrote"
        ) from error


def _note(text: str) -> None:
    click.echo(click.style(f"[{printable(text)}]", dim=True), err=True)


def _lines() -> Iterator[str]:
    """The lines that are typed, with history and editing; or the lines of a pipe."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    from platformdirs import user_state_path
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    history = user_state_path("bitquilt", ensure_exists=True) / "chat_history"
    typed: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)),
        completer=_completer(),
        complete_while_typing=False,
        key_bindings=keys,
    )
    while True:
        try:
            yield typed.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _completer() -> Completer:
    """What completes commands, and the names of files behind some of them."""
    from prompt_toolkit.completion import Completer, PathCompleter, WordCompleter
    from prompt_toolkit.document import Document

    verbs = [line.split()[0] for line in HELP.splitlines() if line.startswith("/")]
    commands, paths = WordCompleter(verbs, sentence=True), PathCompleter(expanduser=True)

    class Commands(Completer):
        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterator[Completion]:
            verb, space, rest = document.text_before_cursor.partition(" ")
            if verb in _WITH_FILES and space:
                yield from paths.get_completions(Document(rest.lstrip()), complete_event)
            else:
                yield from commands.get_completions(document, complete_event)

    return Commands()


@contextmanager
def typed_unseen() -> Iterator[None]:
    """Keep what is typed meanwhile off the screen, where it would mix with the answer.

    It stays in the terminal's buffer, and stands on the next line to be typed. Windows echoes
    nothing that no program is reading.
    """
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
    else:
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
        unseen = [*before]
        unseen[3] &= ~termios.ECHO
        termios.tcsetattr(terminal, termios.TCSADRAIN, unseen)
        try:
            yield
        finally:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


class _CtrlC:
    """Counts Ctrl-C instead of raising KeyboardInterrupt, up to the third time in one answer."""

    INSISTING = 3

    def __init__(self) -> None:
        self.pressed = 0

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _press(self, *_: object) -> None:
        self.pressed += 1
        if self.pressed >= self.INSISTING:
            raise KeyboardInterrupt
