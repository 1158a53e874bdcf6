"""``bitquilt run``: what is printed where, and the exit codes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from bitquilt.cli.talking import Screen
from bitquilt.talk import votes
from bitquilt.talk.events import Answer
from bitquilt.talk.reasoning import PLAIN
from tests.factories import tiny_checkpoint
from tests.quick import invoke
from tests.talk.ends import ended

QUESTION = "What is 347 + 585?"
GREEDY = ("--temperature", "0")


def test_an_answer_is_streamed_to_stdout(capfd, demo_gguf: Path) -> None:
    assert invoke("run", demo_gguf, QUESTION, *GREEDY) == 0
    said = capfd.readouterr()
    assert said.out.endswith("347 + 585 = 932\n\\boxed{932}\n")
    assert said.err == ""


def test_from_stdin_and_the_box_alone(capfd, monkeypatch, demo_gguf: Path) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTION))
    assert invoke("run", demo_gguf, "--final-only", *GREEDY) == 0
    assert capfd.readouterr().out == "932\n"


def test_empty_stdin_is_said(capfd, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert invoke("run", "demo") == 2
    said = capfd.readouterr().err
    assert said == "bitquilt: standard input is empty; give PROMPT, or pipe a question in\n"


@pytest.mark.parametrize("more", [[], ["--no-chat-template"]])
def test_an_empty_prompt_is_said(capfd, more: list[str]) -> None:
    assert invoke("run", "demo", "", *more) == 2
    said = capfd.readouterr().err
    assert (
        said
        == "bitquilt: the prompt is empty; give a question, or leave PROMPT out and pipe it in\n"
    )


def test_bytes_that_are_no_text_are_refused(capfd, demo_gguf: Path) -> None:
    assert invoke("run", demo_gguf, "hi \udcff") == 2
    assert "the prompt is not UTF-8 text; ask in text" in capfd.readouterr().err


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # it depends on the locale
def test_an_image_is_refused_by_name(capfd, monkeypatch, errors: str) -> None:
    picture = io.BytesIO(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(picture, "utf-8", errors))
    assert invoke("run", "demo") == 2
    said = capfd.readouterr().err
    assert said == (
        "bitquilt: the prompt is an image, not text; ask in text, and show an image with "
        "--image FILE\n"
    )


def test_no_box_is_said(capfd, demo_gguf: Path) -> None:
    assert invoke("run", demo_gguf, QUESTION, "--final-only", "--max-tokens", "5", *GREEDY) == 3
    said = capfd.readouterr()
    assert said.out == ""
    assert "gave no boxed answer; ask for one with --system boxed, set a" in said.err
    assert said.err.count("\n") == 1
    cut = ("--max-tokens", "5", *GREEDY)
    assert invoke("run", demo_gguf, QUESTION, "--final-only", "--system", "boxed", *cut) == 3
    assert "gave no boxed answer; set a --think-budget, or raise --max-" in capfd.readouterr().err


def test_thinking_can_be_hidden_and_cut(capfd, demo_gguf: Path) -> None:
    hidden = ("--hide-thinking", "--think-budget", "12")
    assert invoke("run", demo_gguf, QUESTION, *hidden, *GREEDY) == 0
    said = capfd.readouterr()
    assert said.out.startswith("\\boxed{")
    assert "budget is spent" in said.err


def test_json(capfd, demo_gguf: Path) -> None:
    options = ("--json", "--seed", "3", "--top-k", "9", "--presence-penalty", "0.1")
    assert invoke("run", demo_gguf, QUESTION, *options) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["final"] == "932"
    assert said["answer"] == "\\boxed{932}"
    assert said["reasoning"].endswith("347 + 585 = 932\n")
    assert said["tokens"] > said["thinking_tokens"] > 0
    given = {"seed": 3, "top_k": 9, "presence_penalty": 0.1}
    recommended = {"temperature": 0.6, "top_p": 0.95}
    assert given.items() | recommended.items() <= said["sampling"].items()


def test_votes(capfd, demo_gguf: Path) -> None:
    assert invoke("run", demo_gguf, QUESTION, "--votes", "4") == 0
    said = capfd.readouterr()
    assert said.out == "932\n"
    assert said.err.endswith("\n4 of 4 (100%)\n")


@pytest.fixture
def answers(monkeypatch):
    """Make ``--votes`` get these answers, without a model that has to think of them."""

    def give(*texts: str) -> None:
        ends = [ended(answer=text) for text in texts]
        monkeypatch.setattr(votes, "vote", lambda *_: votes.tally(ends))

    return give


def test_votes_without_a_box_are_of_last_lines_and_it_is_said(capfd, demo_gguf, answers) -> None:
    answers("so\nEast", "east", "West", "")
    assert invoke("run", demo_gguf, "Where?", "--votes", "4") == 0
    said = capfd.readouterr()
    assert said.out == "East\n"
    assert said.err.endswith(
        "no answer is in a box, so the last lines of the answers vote\n"
        "2 of 4 (50%); West: 1, no answer: 1\n"
    )
    assert invoke("run", demo_gguf, "Where?", "--votes", "4", "--json") == 0
    assert json.loads(capfd.readouterr().out)["counted"] == "last line"
    answers("", "")
    assert invoke("run", demo_gguf, "Where?", "--votes", "2") == 3
    assert "gave no answer; ask for one with --system boxed" in capfd.readouterr().err


def test_votes_that_do_not_agree_have_no_winner(capfd, demo_gguf, answers) -> None:
    answers("East", "West", "")
    assert invoke("run", demo_gguf, "Where?", "--votes", "3") == 0
    said = capfd.readouterr()
    assert said.out == "East\n"
    assert said.err.endswith(
        "no two answers agree, and the first is printed; East: 1, West: 1, no answer: 1\n"
    )


def test_control_characters_of_a_model_are_shown_and_not_obeyed(capfd) -> None:
    screen = Screen(PLAIN, hide_thinking=False)
    for piece in ("a\x1b", "]0;title\x07\x1b[2J", "\tb\r\n\x9b31m\x7f"):
        screen.show(Answer(piece))
    said = capfd.readouterr().out
    assert said == "a␛]0;title␇␛[2J\tb\n\ufffd31m␡"


def test_control_characters_of_a_vote(capfd, demo_gguf, answers) -> None:
    answers("\x1b[2Jx", "\x1b[2Jx", "\x1b[31my")
    assert invoke("run", demo_gguf, "Where?", "--votes", "3") == 0
    said = capfd.readouterr()
    assert "\x1b[2J" not in said.out + said.err
    assert said.out == "␛[2Jx\n"


def test_plain_text_and_no_system_prompt(capfd, demo_gguf: Path) -> None:
    few = ("--max-tokens", "4", "--json", *GREEDY)
    sizes = {}
    for options in ((), ("--system", ""), ("--system", "boxed"), ("--no-chat-template",)):
        assert invoke("run", demo_gguf, QUESTION, *options, *few) == 0
        sizes[options] = json.loads(capfd.readouterr().out)["prompt_tokens"]
    with_sentence, none, named, plain = sizes.values()
    assert plain < none < with_sentence == named


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--votes", "3", *GREEDY), "all greedy answers are the same"),
        (("--no-chat-template", "--system", "x"), "--system needs the chat template"),
        (("--stop", ""), "the text is empty"),
        (("--min-p", "2"), "Invalid value for '--min-p'"),
        (("--temperature", "nan"), "Invalid value for '--temperature'"),
        (("--system", "very " * 2100), "ask something shorter"),
    ],
)
def test_refusals(capfd, demo_gguf: Path, options, sentence: str) -> None:
    assert invoke("run", demo_gguf, QUESTION, *options) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert sentence in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("template", ["{% nonsense %}", "{{ none + 'x' }}"])
def test_a_template_that_fails_is_one_sentence(capfd, tmp_path: Path, template: str) -> None:
    directory = tiny_checkpoint(tmp_path, "llama", layers=1)
    (directory / "chat_template.jinja").write_text(template)
    capfd.readouterr()
    assert invoke("run", directory, QUESTION, "--max-tokens", "1") == 2
    said = capfd.readouterr().err
    assert "the chat template of the model" in said
    assert said.count("\n") == 1
    assert invoke("inspect", directory) == 0
    assert "chat_template" in capfd.readouterr().out
    assert invoke("plan", directory, "--bits", "9") == 0
