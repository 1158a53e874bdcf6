"""Reasoning and answer told apart, however the text comes in pieces."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitquilt.talk.reasoning import (
    CHANNELS,
    MAGISTRAL,
    PLAIN,
    THINK,
    UP_TO_BOX,
    ReasoningStyle,
    Splitter,
    boxed,
    opened_by,
    style_of,
)


def split(pieces: Iterable[str], style: ReasoningStyle, thinking: bool = False) -> tuple[str, str]:
    """Reasoning and answer."""
    parts = {"reasoning": "", "answer": ""}
    splitter = Splitter(style, thinking)
    for piece in pieces:
        for part, text in splitter.push(piece):
            parts[part] += text
    for part, text in splitter.rest():
        parts[part] += text
    return parts["reasoning"], parts["answer"]


@pytest.mark.parametrize(
    ("text", "style", "thinking", "meant"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", THINK, False, ("Hm.\n", "Yes.")),
        ("\nHm.</think>Yes.", THINK, True, ("Hm.", "Yes.")),
        ("Yes.", THINK, False, ("", "Yes.")),
        ("Hm", THINK, True, ("Hm", "")),
        ("<think>Hm", THINK, False, ("Hm", "")),
        ("<thinking> is no tag", THINK, False, ("", "<thinking> is no tag")),
        ("A tag: <think>", THINK, False, ("", "A tag: <think>")),
        ("<think>a</think>b</think>c<think>d", THINK, False, ("a", "b</think>c<think>d")),
        ("<think>a <think> b</think>c", THINK, False, ("a <think> b", "c")),
        (" \n<think></think>", THINK, False, ("", "")),
        ("[THINK]Hm.[/THINK]Yes.", MAGISTRAL, False, ("Hm.", "Yes.")),
        ("7 + 5\n\\boxed{12}.", UP_TO_BOX, True, ("7 + 5\n", "\\boxed{12}.")),
        ("\\boxed{1} or \\boxed{2}", UP_TO_BOX, True, ("", "\\boxed{1} or \\boxed{2}")),
        ("a \\box and \\boxed", UP_TO_BOX, True, ("a \\box and \\boxed", "")),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
            CHANNELS,
            False,
            ("Hm.", "Yes."),
        ),
        ("<|channel|>final<|message|>Yes.", CHANNELS, False, ("", "Yes.")),
        ("Yes.", CHANNELS, False, ("", "Yes.")),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to",
            CHANNELS,
            False,
            ("Hm.", "<|start|>assistant<|channel|>commentary to"),
        ),
        (" <think>\\boxed{1}", PLAIN, False, ("", " <think>\\boxed{1}")),
    ],
)
def test_parts(text: str, style: ReasoningStyle, thinking: bool, meant: tuple[str, str]) -> None:
    assert split([text], style, thinking) == meant
    assert split(text, style, thinking) == meant


PIECES = st.sampled_from(
    [
        "<|channel|>final<|message|>",
        "<think>",
        "</think>",
        "[THINK]",
        "[/THINK]",
        "\\boxed{",
        "}",
        "<",
        "</th",
        "\\box",
        " ",
        "\n",
    ]
)
TEXT = st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join)


@given(
    TEXT, st.sampled_from([THINK, MAGISTRAL, CHANNELS, UP_TO_BOX, PLAIN]), st.booleans(), st.data()
)
def test_it_does_not_matter_where_it_is_cut(
    text: str, style: ReasoningStyle, thinking: bool, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(pieces, style, thinking) == split([text], style, thinking)


def test_styles() -> None:
    assert style_of("{{ '</think>' }}", "") == THINK
    assert style_of("{{ '[/THINK]' }} and </think>", "") == MAGISTRAL
    assert style_of("{{ messages }}", "answer within \\boxed{}.") == UP_TO_BOX
    assert style_of("{{ '<|channel|>analysis<|message|>' }}", "") == CHANNELS
    assert style_of("{{ messages }}", "hello") == PLAIN
    assert style_of(None, "\\boxed{}") == PLAIN


@pytest.mark.parametrize(
    ("turn", "opened"),
    [
        ("<|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
    ],
)
def test_prompts_may_open_the_reasoning(turn: str, opened: bool) -> None:
    assert opened_by(turn, THINK) is opened


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("none", None),
        ("\\boxed{42}", "42"),
        ("\\boxed{1}, no, \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{ 12 \\text{ km/h} } is it", "12 \\text{ km/h}"),
        ("\\boxed{\\left\\{1, 2\\right\\}}", "\\left\\{1, 2\\right\\}"),
        ("\\boxed{\\{1}", "\\{1"),
        ("\\boxed{a\\\\}", "a\\\\"),
        ("\\boxed{1} then \\boxed{2", "1"),
        ("\\boxed{12", None),
        ("\\boxed{}", ""),
    ],
)
def test_boxes(text: str, meant: str | None) -> None:
    assert boxed(text) == meant


@given(st.recursive(st.text("ab \\,", max_size=3), lambda inner: inner.map("{{{}}}".format)))
def test_nested_braces(inner: str) -> None:
    inner = inner.replace("\\", "")
    assert boxed(f"so \\boxed{{{inner}}} it is }}") == inner.strip()
