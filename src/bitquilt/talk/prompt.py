"""From a conversation to the text that the model continues: its own chat template, rendered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bitquilt.errors import UserError

Message = Mapping[str, str]
"""``{"role": "system" | "user" | "assistant", "content": …}``."""


def render(
    template: str | None, messages: Sequence[Message], special_tokens: Mapping[str, str]
) -> str:
    """The prompt, up to where the assistant's answer begins.

    Args:
        template: Jinja source as models publish it.
        messages: the conversation so far.
        special_tokens: ``bos_token`` and ``eos_token``, which templates spell out.

    Raises:
        UserError: the model has no template, or the template refuses the messages.
    """
    if template is None:
        raise UserError(
            "the model has no chat template, so it continues text only; ask again with --raw"
        )
    try:
        return (
            _environment()
            .from_string(template)
            .render(messages=messages, add_generation_prompt=True, tools=None, **special_tokens)
        )
    except TemplateError as error:
        raise UserError(
            f"the chat template of the model refuses the conversation: {error}; try --raw"
        ) from error


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up for chat templates, which are written against that."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    """JSON as written, where Jinja's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
