"""From a conversation to the tokens that the model continues, by its own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from bitquilt.engines import Engine
from bitquilt.errors import UserError
from bitquilt.models.chat_template import ChatTemplate, ChatTemplateError, Message, Tool
from bitquilt.talk.reasoning import PLAIN, ReasoningStyle, opened_by, style_of

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


def compose(engine: Engine, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Prompt:
    """The prompt for a conversation, by the model's chat template.

    Raises:
        UserError: the model has no template, or the template refuses the messages.
    """
    template, special = engine.info.chat_template, engine.info.special_tokens
    text = render_prompt(template, messages, special, tools)
    before = render_prompt(template, messages, special, tools, add_generation_prompt=False)
    turn = text[len(before) :] if text.startswith(before) else ""
    style = style_of(template, text)
    return Prompt(engine.tokenize(text), style, opened_by(turn, style))


def plain(engine: Engine, text: str) -> Prompt:
    """The prompt for plain text, which is continued as it is; nothing in it marks reasoning."""
    return Prompt(engine.tokenize(text, add_special=True), PLAIN, thinking=False)


def render_prompt(
    template: str | None,
    messages: Sequence[Message],
    special_tokens: Mapping[str, str],
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
        special_tokens: ``bos_token`` and ``eos_token``, which templates write.
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
    bos = special_tokens.get("bos_token", "")
    with suppress(ChatTemplateError):  # some refuse a conversation without a user
        turn = put([NO_SYSTEM], False)
        if emptied.startswith(turn) and turn.startswith(bos):
            return bos + emptied[len(turn) :]
    return emptied
