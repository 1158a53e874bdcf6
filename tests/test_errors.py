"""Sentences name options as their reader can give them, and no option that is not there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import pytest

from bitquilt import PlanConfig, UserError, plan
from bitquilt.cli.main import _named as named_at_a_shell
from bitquilt.cli.main import bitquilt
from bitquilt.cli.options import options_of
from bitquilt.errors import KEYWORDS, in_python, named_by, worded
from bitquilt.serve.errors import for_clients
from bitquilt.serve.requests import ChatRequest, TextRequest
from tests.quick import invoke
from tests.test_readme import parse

PACKAGE = Path(__file__).parents[1] / "src" / "bitquilt"
FLAG = r"(?<![\w-])--[a-z][a-z-]*"
FOREIGN = ("llama-cli ", "llama-mtmd-cli ", "llama-quantize ", "mlx_lm.", "mlx_vlm.")
"""Commands of other programs, for cards and exported recipes."""
VERBS = list(bitquilt.commands.values())


def sentences() -> Iterator[tuple[str, str]]:
    """Text in the sources that names an option, as (file, text); docstrings are for developers."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        parts = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
        for node in ast.walk(tree):
            if id(node) in docs | parts:
                continue
            if isinstance(node, ast.JoinedStr):
                values = node.values
                text = "".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if re.search(rf"{FLAG}\b", text) and " " in text and not text.startswith(FOREIGN):
                yield str(path.relative_to(PACKAGE)), text


SENTENCES = list(sentences())


def test_there_are_sentences_with_options():
    assert len(SENTENCES) > 25


@pytest.mark.parametrize(("file", "text"), SENTENCES)
def test_every_option_in_a_sentence_is_there(file, text):
    """Outside of backticks it is one of ours, and of a config; within them, a whole command."""
    own = file.startswith("cli/")
    for command in re.findall(r"`(bitquilt [^`]*)`", text):
        parse(re.sub(r"MODEL\.\.\.|NAME,…", "X", command), whole=False)
    for flag in re.findall(FLAG, re.sub(r"`[^`]*`", "", text)):
        having = [verb for verb in VERBS if flag in options_of(verb)]
        assert having or flag == "--help", f"{file}: no verb has {flag}"
        if own:
            verb = bitquilt.commands.get(Path(file).stem)
            assert verb is None or verb in having or flag == "--help", f"{verb} has no {flag}"
        else:
            assert flag in KEYWORDS, f"{flag} is of no config, so Python has no word for it"


@pytest.mark.parametrize(("file", "text"), SENTENCES)
def test_python_reads_no_option_of_the_command_line(file, text):
    if not file.startswith("cli/"):
        said = re.sub(r"`[^`]*`", "", worded(text, in_python))
        assert not re.search(FLAG, said), said


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_a_verb_is_told_its_own_options_or_a_whole_command(verb):
    for file, text in SENTENCES:
        if not file.startswith("cli/"):
            _check_what_is_told_to(verb, text)


def _check_what_is_told_to(verb: click.Command, text: str) -> None:
    said = worded(text, partial(named_at_a_shell, verb))
    for flag in re.findall(FLAG, re.sub(r"`[^`]*`", "", said)):
        assert flag in options_of(verb), said
    for command in re.findall(r"`(bitquilt [^`]*)`", said):
        parse(command, whole=False)


@pytest.mark.parametrize(
    ("file", "text"),
    [one for one in SENTENCES if one[0].startswith(("talk/", "engines/", "models/"))],
)
def test_clients_are_told_fields_of_requests(file, text):
    if file.endswith("config.py"):  # help of options
        return
    said = re.sub(r"`[^`]*`", "", for_clients(UserError(text)))
    assert not re.search(FLAG, said), said
    for field in re.findall(r'"(\w+)"', said):
        assert field in ChatRequest.model_fields or field in TextRequest.model_fields, said


def test_one_sentence_for_three_readers():
    error = UserError(
        "give --no-chat-template, --max-tokens=9 or --search=race; `bitquilt run --seed 3`"
    )
    assert str(error) == (
        "give bitquilt.talk.plain, max_tokens=9 or SearchConfig(method='race'); "
        "`bitquilt run --seed 3`"
    )
    with named_by(partial(named_at_a_shell, bitquilt.commands["chat"])):
        assert str(error) == (
            "give `bitquilt run --no-chat-template`, --max-tokens 9 or "
            "`bitquilt quantize --search race`; `bitquilt run --seed 3`"
        )
    assert for_clients(error).startswith('give POST /v1/completions, "max_tokens": 9')
    assert str(error).startswith("give bitquilt.talk.plain")


def test_python_and_the_shell_read_their_own_words(capfd):
    with pytest.raises(UserError, match=r"^bits is 0; give a number"):
        PlanConfig(bits=0)
    assert invoke("plan", "demo", "--bits", "0") == 2
    assert capfd.readouterr().err.startswith("bitquilt: --bits is 0; give a number")
    asked = r"give bits=4\.5 for each weight, size for everything on disk, or recipe='Q4_K_M'"
    with pytest.raises(UserError, match=asked):
        plan("demo")


def test_an_error_goes_to_another_process_as_it_was_raised():
    error = UserError("give --bits=4")
    assert error.sentence == "give --bits=4"
    assert str(UserError()) == ""


def test_a_flag_that_no_verb_has_is_noticed():
    with pytest.raises(click.UsageError):
        parse("bitquilt run --final", whole=False)
