"""``bitquilt chat``: from a pipe, and in a terminal where Ctrl-C stops the answer only."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from bitquilt.cli import chat as chat_module
from bitquilt.engines import llamacpp
from tests.bases.models import needs_converter
from tests.factories import tiny_checkpoint
from tests.magistral import seeing_files
from tests.png import colours, png
from tests.quick import invoke

ROOT = Path(__file__).parent.parent.parent
GREEDY = ("--temperature", "0")


@pytest.fixture
def talk(capfd, monkeypatch, demo_gguf: Path):
    """Say lines to the demo; what was said on stdout and on stderr."""

    def say(*lines: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        assert invoke("chat", demo_gguf, *GREEDY) == 0
        said = capfd.readouterr()
        return said.out, said.err

    return say


def test_advice_is_what_chat_can_follow(capfd, monkeypatch, tmp_path: Path) -> None:
    """`run` has the option that continues plain text, so its whole command is named."""
    directory = tiny_checkpoint(tmp_path, "llama", layers=1)
    (directory / "chat_template.jinja").write_text("{{ none + 'x' }}")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi"))
    assert invoke("chat", directory) == 0
    assert "continue plain text with `bitquilt run --no-chat-template`]" in capfd.readouterr().err
    assert invoke("run", directory, "Hi") == 2
    assert capfd.readouterr().err.endswith("continue plain text with --no-chat-template\n")


def test_a_conversation(talk) -> None:
    out, err = talk("What is 12 + 30?", "/stats", "What is 5 + 9?", "/quit", "What is 1 + 1?")
    assert re.findall(r"boxed\{(\d+)\}", out) == ["42", "14"]
    assert re.search(r"\d+ tokens, \d+ of them reasoning, [\d.]+ tokens/s; 0 loops taken back", err)


def test_commands(talk, tmp_path: Path) -> None:
    kept = tmp_path / "talk.json"
    out, err = talk(
        "/stats",
        "/regenerate",
        "/nonsense",
        f"/load {kept}",
        "/save",
        "What is 12 + 30?",
        f"/save {kept}",
        "/reset",
        f"/load {kept}",
        "/regenerate",
        '/system ""',
        "/system",
        "/help",
    )
    notes = [line for line in err.splitlines() if line.startswith("[")]
    assert [note.split("; ")[0] for note in notes] == [
        "[nothing has been answered yet",
        "[nothing has been asked yet",
        "[/nonsense is not a command",
        f"[{kept} cannot be read as JSON: [Errno 2] No such file or directory: '{kept}'",
        "[the file's name is missing",
        f"[the conversation was saved to {kept}]",
        "[this is a new conversation]",
        "[the conversation has 1 question and its answer]",
        "[there is no system prompt]",
        "[there is no system prompt]",
    ]
    assert out.count("boxed{42}") == 2
    assert all(f"\n{verb} " in f"\n{out}" for verb in ("/system", "/reset", "/quit"))


def test_a_file_stands_before_the_next_question(talk, tmp_path: Path) -> None:
    told, picture, kept = (tmp_path / name for name in ("sum.txt", "a.png", "talk.json"))
    told.write_text("What is 12 + 30?\n")
    picture.write_bytes(b"\x89PNG\xff")
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    err = talk(
        f"/file {tmp_path / 'none'}", f"/file {tmp_path}", f"/file {picture}", "/file",
        f"/file {latin}", f"/file {told}", "/reset", f"/file {told}", "Answer it.", "Why?",
        f"/save {kept}",
    )[1]  # fmt: skip
    for reason in ("No such file", "Is a directory", "the file's name is"):
        assert reason in err
    assert "reads text only: images need a GGUF file of a model that sees" in err
    assert f"{latin} is not UTF-8 text; name a text file or an image" in err
    assert re.search(r"\[sum.txt has \d+ tokens and stands before the next question\]", err)
    first, _, second, _ = json.loads(kept.read_text("utf-8"))["messages"]
    assert first["content"] == "sum.txt:\n```\nWhat is 12 + 30?\n```\n\nAnswer it."
    assert second["content"] == "Why?"


@needs_converter
def test_an_image_stands_before_the_next_question(capfd, monkeypatch, tmp_path: Path) -> None:
    """The model sees it, another one too, and a conversation that was saved has it still."""
    model, kept = seeing_files(tmp_path), tmp_path / "talk.json"
    for name, pixels in (("one", colours(112, 84)), ("other", colours(112, 84)[::-1].copy())):
        (tmp_path / name).write_bytes(png(pixels))

    def say(*lines: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        assert invoke("chat", model, *GREEDY, "--max-tokens", "6") == 0
        said = capfd.readouterr()
        assert said.err.count("stands before the next question") == sum(
            line.startswith("/file") for line in lines
        )
        return said.out

    blind = say("What is it?")
    one = say(f"/file {tmp_path / 'one'}", "What is it?", f"/save {kept}")
    other = say(f"/file {tmp_path / 'other'}", "What is it?")
    assert len({blind, one, other}) == 3
    assert say(f"/load {kept}", "/regenerate") == one
    kept.write_text(kept.read_text().replace('"images": [', '"images": ["?",'))
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/load {kept}"))
    assert invoke("chat", model) == 0
    assert f"{kept} has images that cannot be read" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("/fi", ["/file"]), ("/s", ["/system", "/save", "/stats"]), ("/file {}/no", ["te.txt"]),
     ("/save  {}/n", ["ote.txt"]), ("hello /f", []), ("/system {}/n", [])],
)  # fmt: skip
def test_commands_and_files_are_completed(typed: str, offered: list[str], tmp_path: Path) -> None:
    (tmp_path / "note.txt").touch()
    document = Document(typed.format(tmp_path))
    found = chat_module._completer().get_completions(document, CompleteEvent())
    assert [one.text for one in found] == offered


def test_a_fence_is_longer_than_those_inside() -> None:
    assert chat_module.quoted_file("a", "````").splitlines()[1] == "`````"


def test_a_crash_loses_no_conversation(talk, monkeypatch) -> None:
    """The first engine is killed under the second question; the third is answered by another."""
    opened = []

    def open_and_remember(path: str):
        opened.append(llamacpp.open_llamacpp(Path(path)))
        return opened[-1]

    def ask_and_kill(self: chat_module.Conversation, _: str) -> None:
        opened[0]._process.kill()
        opened[0]._process.wait()

    monkeypatch.setattr("bitquilt.engines.open_engine", open_and_remember)
    monkeypatch.setattr(chat_module.Conversation, "_reset", ask_and_kill)
    out, err = talk("What is 12 + 30?", "/reset", "What is 5 + 9?", "/regenerate")
    assert "crashed" in err
    assert "the conversation is kept" in err
    assert re.findall(r"boxed\{(\d+)\}", out) == ["42", "14"]
    assert len(opened) == 2


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, *command: str, **environment: str) -> None:
        self._file, inside = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            env=os.environ | environment,
            preexec_fn=lambda: _take_terminal(inside),
        )
        os.close(inside)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._file, text.encode())

    def wait_for(self, text: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while text not in re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", self.seen):
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen!r}"
            if select.select([self._file], [], [], 1)[0]:
                try:
                    data = os.read(self._file, 4096)
                except OSError:
                    raise AssertionError(f"ended: {self.seen}") from None
                self.seen += data.decode(errors="replace")
                if b"\x1b[6n" in data:  # prompt_toolkit asks where the cursor is
                    self.type("\x1b[1;1R")


def _take_terminal(inside: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(inside, termios.TIOCSCTTY, 0)


@contextmanager
def terminal(*command: str, **environment: str) -> Iterator[Terminal]:
    opened = Terminal(*command, **environment)
    try:
        yield opened
    finally:
        opened.process.kill()
        opened.process.wait()


def test_ctrl_c_stops_the_answer_and_not_the_program(demo_gguf: Path, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "bitquilt.cli.main", "chat", str(demo_gguf), *GREEDY)
    with terminal(
        *command, PYTHONPATH=str(ROOT / "src"), XDG_STATE_HOME=str(tmp_path), TERM="xterm"
    ) as screen:
        screen.wait_for("the commands.\r\n>")
        screen.type("Convert 23 litres to millilitres.\r")
        screen.wait_for("1 litre")
        screen.type("\x03")
        screen.wait_for("the answer was stopped")
        screen.type("\x03What is 12 + 30?\r")
        screen.wait_for("boxed{42}")
        screen.wait_for("boxed{42}\r\n>")  # what is typed before is echoed as it is
        screen.type("\x12litres")
        screen.wait_for("(reverse-i-search)`litres': Convert 23 litres")
        screen.type("\x07\x15/quit\r")
        assert screen.process.wait(30) == 0
    assert "Traceback" not in screen.seen
    assert "Convert" in next(tmp_path.rglob("chat_history")).read_text()


def test_a_model_without_a_template_is_refused_before_the_first_question(
    capfd, monkeypatch, tmp_path: Path
) -> None:
    directory = tiny_checkpoint(tmp_path, "llama", layers=1)
    for file in (directory / "chat_template.jinja", directory / "tokenizer_config.json"):
        if file.exists() and file.suffix == ".json":
            said = json.loads(file.read_text())
            file.write_text(json.dumps({k: v for k, v in said.items() if k != "chat_template"}))
        else:
            file.unlink(missing_ok=True)
    capfd.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello"))
    assert invoke("chat", directory) == 2
    assert capfd.readouterr().err == (
        f"bitquilt: {directory} has no chat template, so it cannot hold a conversation; continue "
        f"plain text with `bitquilt run {directory} TEXT --no-chat-template`\n"
    )


def test_a_template_that_fails_is_one_note(capfd, monkeypatch, tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "llama", layers=1)
    (directory / "chat_template.jinja").write_text("{% nonsense %}")
    capfd.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nHello again\n/quit"))
    assert invoke("chat", directory, *GREEDY) == 0
    assert capfd.readouterr().err.count("[the chat template of the model cannot be read") == 2


def test_what_is_typed_during_an_answer_is_not_shown_and_not_lost(monkeypatch):
    ours, theirs = pty.openpty()
    try:
        with os.fdopen(theirs, "r", closefd=False) as terminal:
            monkeypatch.setattr(sys, "stdin", terminal)
            with chat_module.typed_unseen():
                os.write(ours, b"next question\n")
                assert not select.select([ours], [], [], 0.2)[0]
            os.write(ours, b"seen\n")
            assert select.select([ours], [], [], 2)[0]
            assert os.read(ours, 100).startswith(b"seen")
            assert terminal.readline() == "next question\n"
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_pipe_has_no_echo_to_switch_off(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("question"))
    with chat_module.typed_unseen():
        pass


def test_windows_has_no_echo_to_switch_off(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(chat_module, "termios")
    monkeypatch.setattr(sys, "stdin", io.StringIO("question"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with chat_module.typed_unseen():
        pass
