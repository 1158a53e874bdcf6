"""From a conversation to the tokens that the model continues, by its own chat template."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from bitquilt.engines import Engine, ModelInfo
from bitquilt.errors import UserError
from bitquilt.models.chat_template import ChatTemplate, ChatTemplateError, Message, Tool
from bitquilt.talk.merging import merged_turns
from bitquilt.talk.reasoning import PLAIN, ReasoningStyle, opened_by, style_of
from bitquilt.talk.tool_calls import call_style
from bitquilt.talk.tool_calls.history import for_template

NO_SYSTEM: Message = {"role": "system", "content": ""}
SYSTEM_PROMPTS = {
    "boxed": "Please reason step by step, and put your final answer within \\boxed{}.",
    "magistral": (
        "First draft your thinking process (inner monologue) until you arrive at a response. "
        "Format your response using Markdown, and use LaTeX for any mathematical equations. Write "
        "both your thoughts and the response in the same language as the input.\n\n"
        "Your thinking process must follow the template below:[THINK]Your thoughts or/and draft, "
        "like working through an exercise on scratch paper. Be as casual and as long as you want "
        "until you are confident to generate the response. Use the same language as the input."
        "[/THINK]Here, provide a self-contained response."
    ),
}
"""Known system prompts: MobileLLM-R1's for problems with one answer, Magistral's for reasoning."""


@dataclass(frozen=True)
class Prompt:
    """The tokens that a model continues, and how it will mark its reasoning."""

    tokens: list[int]
    style: ReasoningStyle
    thinking: bool
    """Whether the model begins inside its reasoning."""
    marks: tuple[str, ...] = ()
    """Control tokens in these texts are part of the answer: they mark tool calls."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """How the prompt of a conversation ends, and what its template is told."""

    opened: bool = True
    """Whether the prompt goes on to where the assistant's answer begins."""
    continued: bool = False
    """Whether the last message is the assistant's beginning of the answer, to be gone on with."""
    variables: Mapping[str, object] = field(default_factory=dict)
    """What else the template can read, like ``enable_thinking``."""


NEXT = Turn()
"""The answer to the last message begins."""
_MARK = "\ue000continued\ue001"
"""Follows the last message where it is continued, to find its end in the rendered text."""
_RESERVED = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token")


_IMAGE = re.compile("\ue000image ([0-9a-f]{64})\ue001")


def image_mark(image: bytes) -> str:
    """What stands for an image in the text of a message."""
    return f"\ue000image {_key(image)}\ue001"


def require_sight(info: ModelInfo) -> None:
    """Refuse images where the model reads text only.

    Raises:
        UserError: it does.
    """
    if not info.sees:
        raise UserError(
            f"{info.name} reads text only: images need a GGUF file of a model that sees, with the "
            "file of its vision tower, mmproj-NAME.gguf, beside it; ask in text"
        )


def _key(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


def compose(
    engine: Engine,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    turn: Turn = NEXT,
    images: Sequence[bytes] = (),
) -> Prompt:
    """The prompt for a conversation, by the model's chat template.

    Args:
        engine: the model.
        messages: the conversation.
        tools: functions that the model may call.
        turn: how the prompt ends.
        images: files of images, whose :func:`image_mark` is in the text of the messages.

    Raises:
        UserError: the model has no template, the template refuses the messages, or there are
            images and the model reads text only.
    """
    if images:
        require_sight(engine.info)
    template = engine.info.template(bool(tools))
    if template is not None:
        messages = for_template(template, messages, tools, engine.info.special_tokens)
    special = {**_own(turn.variables), **engine.info.special_tokens}
    render = partial(_rendered, template, special, tools, turn)
    try:
        before, text = render(messages)
    except ChatTemplateError as refusal:
        try:
            before, text = render(merged_turns(messages))
        except ChatTemplateError:
            raise refusal from None
    begun = text[len(before) :] if text.startswith(before) else ""
    style = style_of(template, text)
    calls = call_style(engine.info) if tools else None
    marks = calls.marks if calls else ()
    tokens = _tokens(engine, text, {_key(image): image for image in images})
    return Prompt(tokens, style, opened_by(begun, style), marks)


def _rendered(
    template: str | None,
    special: Mapping[str, object],
    tools: Sequence[Tool],
    turn: Turn,
    messages: Sequence[Message],
) -> tuple[str, str]:
    """The text of a conversation without and with what begins the answer."""
    ended = partial(
        render_prompt, template, special_tokens=special, tools=tools, add_generation_prompt=False
    )
    if turn.continued:
        return ended(messages[:-1]), _up_to_mark(ended([*messages[:-1], _marked(messages[-1])]))
    text = render_prompt(template, messages, special, tools, add_generation_prompt=turn.opened)
    return ended(messages), text


def _tokens(engine: Engine, text: str, images: Mapping[str, bytes]) -> list[int]:
    """The tokens of a text, with those of images where their marks are."""
    if not images:
        return engine.tokenize(text)
    tokens: list[int] = []
    for index, piece in enumerate(_IMAGE.split(text)):  # texts, and keys between them
        if index % 2 and piece in images:
            tokens += engine.see(images[piece])
        elif piece and not index % 2:
            tokens += engine.tokenize(piece)
    return tokens


def plain(engine: Engine, text: str | Sequence[int], add_special: bool = True) -> Prompt:
    """The prompt for plain text, which is continued as it is; nothing in it marks reasoning.

    Args:
        engine: turns text into tokens.
        text: the text, or its tokens.
        add_special: put before a text what the tokenizer puts there, unless it is written there.

    Raises:
        UserError: a token is none of the model's.
    """
    if isinstance(text, str):
        start = engine.info.special_tokens.get("bos_token")
        add_special = add_special and not (start and text.startswith(start))
        return Prompt(engine.tokenize(text, add_special=add_special), PLAIN, thinking=False)
    require_tokens(engine.info, text)
    return Prompt(list(text), PLAIN, thinking=False)


def require_tokens(info: ModelInfo, tokens: Sequence[int]) -> None:
    """Check that tokens are a model's own; engines crash on others.

    Raises:
        UserError: one of them is not.
    """
    if foreign := [token for token in tokens if not 0 <= token < info.vocabulary]:
        raise UserError(
            f"the token {foreign[0]} is none of the model's, which are from 0 to "
            f"{info.vocabulary - 1}; use the model's own tokenizer for the prompt"
        )


def _own(variables: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in variables.items() if name not in _RESERVED}


def _marked(message: Message) -> Message:
    return {**message, "content": f"{message['content']}{_MARK}"}


def _up_to_mark(text: str) -> str:
    """The rendered conversation up to the end of its last message.

    Raises:
        UserError: the template leaves the last message out.
    """
    before, mark, _ = text.rpartition(_MARK)
    if not mark:
        raise UserError(
            "the chat template of the model leaves the last message out, so it cannot be "
            "continued; end the conversation with a message of the user"
        )
    return before


def render_prompt(
    template: str | None,
    messages: Sequence[Message],
    special_tokens: Mapping[str, object],
    tools: Sequence[Tool] = (),
    *,
    add_generation_prompt: bool = True,
) -> str:
    """The text of a conversation.

    An empty system message means that there is none. Where a template puts in its own if there is
    none, it gets the empty one, and the turn of that is cut out.

    Args:
        template: Jinja source as models publish it.
        messages: the conversation so far.
        special_tokens: ``bos_token`` and ``eos_token``, which templates write, and whatever else
            the template can read.
        tools: functions that the model may call.
        add_generation_prompt: go on to where the assistant's answer begins.

    Raises:
        UserError: the model has no template, or the template refuses the messages.
    """
    if template is None:
        raise UserError(
            "the model has no chat template, so it cannot hold a conversation; continue plain text "
            "with --no-chat-template"
        )
    compiled = ChatTemplate.compile(template)

    def put(said: Sequence[Message], begin_answer: bool) -> str:
        return compiled.render(said, tools, begin_answer, **special_tokens)

    if not messages or messages[0] != NO_SYSTEM:
        return put(messages, add_generation_prompt)
    without = put(messages[1:], add_generation_prompt)
    emptied = put(messages, add_generation_prompt)
    if len(without) <= len(emptied):
        return without
    bos = str(special_tokens.get("bos_token", ""))
    with suppress(ChatTemplateError):  # some refuse a conversation without a user
        turn = put([NO_SYSTEM], False)
        if emptied.startswith(turn) and turn.startswith(bos):
            return bos + emptied[len(turn) :]
    return emptied
