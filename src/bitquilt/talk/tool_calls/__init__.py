"""Tool calls, as the families of models write them: one module a family.

:func:`call_style` tells the family by the chat template, which teaches the model how to call. What
they have in common is in :mod:`.call`.
"""

from __future__ import annotations

from bitquilt.engines import ModelInfo
from bitquilt.talk.tool_calls.call import AnswerReader, Call, ToolStyle
from bitquilt.talk.tool_calls.gemma import FUNCTION_GEMMA, GEMMA_4, gemma_style
from bitquilt.talk.tool_calls.harmony import HARMONY
from bitquilt.talk.tool_calls.hermes import HERMES
from bitquilt.talk.tool_calls.lists import CLOSE, GRANITE, OPEN, PHI
from bitquilt.talk.tool_calls.llama import LLAMA_3, TAG
from bitquilt.talk.tool_calls.mistral import START, mistral_style
from bitquilt.talk.tool_calls.qwen_coder import QWEN_CODER

__all__ = ["FAMILIES", "AnswerReader", "Call", "ToolStyle", "call_style"]

FAMILIES = "Hermes, Qwen, Qwen3-Coder, Llama 3, Mistral, Gemma, Granite, gpt-oss and Phi-4"
"""Whose calls are understood, for sentences."""


def call_style(info: ModelInfo) -> ToolStyle | None:
    """How a model writes tool calls, by what its chat template contains.

    Where that tells nothing, the tokenizer's ``response_template`` may; None if neither does.
    """
    source = info.chat_template or ""
    if FUNCTION_GEMMA.open in source or GEMMA_4.open in source:
        return gemma_style(source)
    if START in source:
        return mistral_style(source)
    for style, signs in (
        (HARMONY, ("<|channel|>",)),
        (PHI, (CLOSE, "<|tool|>")),
        (QWEN_CODER, ("<function=",)),
        (GRANITE, (OPEN, "<function_call>")),
        (HERMES, HERMES.starts),
        (LLAMA_3, (TAG, '"parameters": dictionary of argument name')),
    ):
        if any(sign in source for sign in signs):
            return style
    if info.response_template:
        from bitquilt.talk.tool_calls.response_template import template_style

        return template_style(info.response_template)
    return None
