"""Answers that have to be a call: grammars in the notation of the model's family."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bitquilt.engines import Engine
from bitquilt.errors import UserError
from bitquilt.models.chat_template import Tool
from bitquilt.talk.grammar import lark_grammar, mark, without_idle
from bitquilt.talk.tool_calls.call import ToolStyle, schemas_of


def call_grammar(engine: Engine, style: ToolStyle, tools: Sequence[Tool]) -> str:
    """The grammar of one call of one of some tools.

    Raises:
        UserError: nothing can be forced in this style, or a tool's schema cannot be followed.
    """
    if style.force is None:
        raise UserError(
            f'calls in the style of {style.name} cannot be forced; ask with "tool_choice": "auto"'
        )
    schemas = {name: without_idle(schema) for name, schema in schemas_of(tools).items()}
    return lark_grammar("start: call\n" + style.force(schemas, partial(mark, engine)))
