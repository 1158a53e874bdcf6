"""Tool calls, as the families of models write them: one module a family.

:func:`call_style` tells the family by the chat template, which teaches the model how to call. What
they have in common is in :mod:`.call`.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitquilt.engines import ModelInfo
from bitquilt.models.chat_template import ChatTemplateError
from bitquilt.talk.tool_calls.call import AnswerReader, Call, CallStyle, ToolStyle
from bitquilt.talk.tool_calls.gemma import FUNCTION_GEMMA, GEMMA_4, gemma_style
from bitquilt.talk.tool_calls.harmony import HARMONY
from bitquilt.talk.tool_calls.hermes import HERMES
from bitquilt.talk.tool_calls.hermes import OPEN as OPEN_TAG
from bitquilt.talk.tool_calls.history import KEY, NAME, VALUE, written_call
from bitquilt.talk.tool_calls.lists import CLOSE, GRANITE, OPEN, PHI
from bitquilt.talk.tool_calls.llama import LLAMA_3, TAG
from bitquilt.talk.tool_calls.mistral import START, mistral_style
from bitquilt.talk.tool_calls.qwen_coder import QWEN_CODER

__all__ = ["FAMILIES", "AnswerReader", "Call", "ToolStyle", "call_style"]

_SIGNS: tuple[tuple[CallStyle, tuple[str, ...]], ...] = (
    (HARMONY, ("<|channel|>",)),
    (PHI, (CLOSE, "<|tool|>")),
    (QWEN_CODER, ("<function=",)),
    (GRANITE, (OPEN, "<function_call>")),
    (HERMES, (OPEN_TAG,)),
    (LLAMA_3, (TAG, '"parameters": dictionary of argument name')),
)
FAMILIES = "Hermes, Qwen, Qwen3-Coder, Llama 3, Mistral, Gemma, Granite, gpt-oss and Phi-4"
"""Whose calls are understood, for sentences."""


def call_style(info: ModelInfo) -> ToolStyle | None:
    """How a model writes tool calls, by what its chat template contains.

    A call that the template writes itself has to be read as that call: many templates have marks
    of a family and mean something else. Where no family is known, the tokenizer's
    ``response_template`` may tell; None if it does not.
    """
    for style in _styles(info.template(tools=True) or ""):
        if _understands(style, info):
            return style
    if info.response_template:
        from bitquilt.talk.tool_calls.response_template import template_style

        return template_style(info.response_template)
    return None


def _styles(source: str) -> Iterator[CallStyle]:
    """The families whose marks are in a chat template, those with rarer marks first."""
    if FUNCTION_GEMMA.open in source or GEMMA_4.open in source:
        yield gemma_style(source)
    if START in source:
        yield mistral_style(source)
    for style, signs in _SIGNS:
        if any(sign in source for sign in signs):
            yield style


def _understands(style: CallStyle, info: ModelInfo) -> bool:
    """Whether calls in the model's own notation are read, as far as its template shows any."""
    try:
        text = written_call(info.template(tools=True) or "", info.special_tokens)
    except ChatTemplateError:
        return False
    if not any(start in text for start in style.starts):
        return True  # it shows no calls, or others than it teaches
    reader = style.reader([{"type": "function", "function": {"name": NAME}}])
    return Call.of(NAME, {KEY: VALUE}) in (*reader.push(text), *reader.rest())
