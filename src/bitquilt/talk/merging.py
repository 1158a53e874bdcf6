"""Conversations for chat templates that refuse systems, or two turns of one role in a row."""

from __future__ import annotations

from collections.abc import Sequence

from bitquilt.models.chat_template import Message

BETWEEN = "\n\n"


def merged_turns(messages: Sequence[Message]) -> list[Message]:
    """The same words in turns of user and assistant.

    A system's words are the user's, and turns of the user in a row are one. So templates do it
    themselves whose models know no system, such as Gemma 3's.
    """
    found: list[Message] = []
    for message in messages:
        if message["role"] == "system":
            message = {"role": "user", "content": message["content"]}
        if message["role"] != "user":
            found.append(message)
        elif message["content"]:
            before = [found.pop()["content"]] if found and found[-1]["role"] == "user" else []
            found.append({**message, "content": BETWEEN.join([*before, message["content"]])})
    return found
