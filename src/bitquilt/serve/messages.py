"""The messages of a conversation as clients send them, and as a chat template takes them.

Clients send back what they were given, with fields of their own and of other servers. What carries
no meaning here is left out, null stands for the default everywhere, and only what the model would
have to read and cannot is refused.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator

from bitquilt.models.chat_template import Message
from bitquilt.talk.prompt import image_mark

IMAGE_PARTS = ("image_url", "input_image", "image")
"""Parts that show an image."""
TEXT_PARTS = ("text", "input_text", "output_text")
THOUGHT_PARTS = ("thinking", "redacted_thinking", "reasoning", "reasoning_text")
"""Parts of earlier reasoning, which no later turn needs."""
ROLES = {"developer": "system", "function": "tool"}
"""Roles that templates do not know → those that they know instead."""


class Lenient(BaseModel):
    """A JSON object whose unknown fields are left out, and where null stands for the default."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


class CalledFunction(Lenient):
    """A function with its arguments."""

    name: str = ""
    """Empty where a stream broke off before it, and the client sent back what it had."""
    arguments: Any = Field(default_factory=dict)
    """An object, as templates take it; or the text that the model wrote, where that is none."""

    @field_validator("arguments", mode="before")
    @classmethod
    def _parsed(cls, written: Any) -> Any:
        if not isinstance(written, str):
            return written
        try:
            arguments = json.loads(written) if written.strip() else {}
        except ValueError:
            return written
        return arguments if isinstance(arguments, dict) else written


class ToolCall(Lenient):
    """A call that the model made in an earlier turn."""

    id: str = ""
    function: CalledFunction = Field(default_factory=CalledFunction)

    def for_template(self) -> Mapping[str, Any]:
        """The call for a chat template, which writes the arguments as JSON itself."""
        return {"id": self.id, "type": "function", "function": self.function.model_dump()}


class ShownImage(NamedTuple):
    """An image in a message."""

    kind: str
    """The type of its part, by which it is refused."""
    data: bytes


class ChatMessage(Lenient):
    """One message of a conversation."""

    role: str = Field(min_length=1)
    content: str = ""
    reasoning_content: str = Field(
        "", validation_alias=AliasChoices("reasoning_content", "reasoning", "thinking")
    )
    tool_calls: list[ToolCall] = Field(default_factory=list)
    tool_call_id: str | None = None
    name: str | None = None
    images: list[ShownImage] = Field(default_factory=list)
    """What its parts show; in the content a mark stands for each."""

    @model_validator(mode="before")
    @classmethod
    def _with_images(cls, fields: Any) -> Any:
        """Take the images out of the parts, whatever else calls itself so."""
        if not isinstance(fields, dict):
            return fields
        content, images = fields.get("content"), []
        if isinstance(content, list):
            parts = []
            for part in content:
                if (image := _shown(part)) is not None:
                    images.append(image)
                    part = image_mark(image.data)
                parts.append(part)
            content = parts
        return {**fields, "content": content, "images": images}

    @model_validator(mode="before")
    @classmethod
    def _from_functions(cls, fields: Any) -> Any:
        """Read a call as OpenAI's API had it before there were tools."""
        if isinstance(fields, dict) and isinstance(called := fields.get("function_call"), dict):
            return {"tool_calls": [{"function": called}], **fields}
        return fields

    @field_validator("content", mode="before")
    @classmethod
    def _text(cls, content: Any) -> str:
        return content_text(content)

    @field_validator("reasoning_content", mode="before")
    @classmethod
    def _thoughts(cls, thoughts: Any) -> str:
        return thoughts_text(thoughts)

    def for_template(self, unmarked: bool) -> Message:
        """The message in the form that a chat template takes.

        Args:
            unmarked: whether the model does not mark its reasoning; then it is a part of what it
                said.
        """
        put: dict[str, Any] = {"role": ROLES.get(self.role, self.role), "content": self.content}
        if self.reasoning_content:
            if unmarked:
                put["content"] = self.reasoning_content + self.content
            else:
                put["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            put["tool_calls"] = [call.for_template() for call in self.tool_calls]
        for name in ("name", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                put[name] = value
        return put


def _shown(part: Any) -> ShownImage | None:
    """The image that a part shows; None of any other part.

    It is in a data: URL as OpenAI's APIs have it, or in base64 alone as ollama and Anthropic do.

    Raises:
        ValueError: it is elsewhere, or not in base64.
    """
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in IMAGE_PARTS:
        return None
    held = part.get("image_url") or part.get("image") or part.get("source")
    if isinstance(held, dict):
        held = held.get("url") or held.get("data")
    if not isinstance(held, str):
        return None  # refused by its type
    if held.startswith(("http:", "https:", "file:")):
        raise ValueError(
            "an image is given by its address, but this server fetches nothing; send the image as "
            "a data: URL"
        )
    data = held.partition(",")[2] if held.startswith("data:") else held
    try:
        return ShownImage(kind, base64.b64decode(data, validate=True))
    except ValueError:
        raise ValueError("an image is not in base64; send it as a data: URL in base64") from None


def text_only(kind: str) -> str:
    """The refusal of a part of a kind that the model does not read."""
    return (
        f"a part is of type {kind!r}, but this model reads text only; send parts of type 'text' "
        "whose 'text' is a string"
    )


def content_text(content: Any) -> str:
    """All text of a message's content: a text, a part, parts, or the JSON that a tool returned.

    Raises:
        ValueError: a part is an image or something else that is no text.
    """
    if isinstance(content, list):
        texts = [_part_text(part) for part in content]
        return "\n".join(text for text in texts if text)
    return _part_text(content)


def thoughts_text(thoughts: Any) -> str:
    """The text of earlier reasoning, in whatever form a client keeps it; other things have none."""
    if isinstance(thoughts, list):
        return "\n".join(filter(None, map(thoughts_text, thoughts)))
    if isinstance(thoughts, dict):
        thoughts = thoughts.get("text") or thoughts.get("content")
    return thoughts if isinstance(thoughts, str) else ""


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or not ("type" in part or "text" in part):
        return json.dumps(part, ensure_ascii=False)
    kind = part.get("type", "text")
    if kind in THOUGHT_PARTS:
        return ""
    if kind in TEXT_PARTS or kind == "refusal":
        names = ("refusal",) if kind == "refusal" else ("text", "content")
        text = next((part[name] for name in names if part.get(name) is not None), None)
        if isinstance(text, dict):  # as OpenAI's assistants had it
            text = text.get("value")
        if text is None or isinstance(text, str):
            return text or ""
    raise ValueError(text_only(kind))
