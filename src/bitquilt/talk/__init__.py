"""Talking to a model: a conversation in, typed events out, and always an end.

:class:`Session` keeps a conversation, :func:`answer` answers one prompt, :func:`vote` several times
at once. What the command line can ask for is in :mod:`.config`, which is cheap to import: the names
here are imported when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitquilt.runtime.lazy import lazily

if TYPE_CHECKING:
    from bitquilt.models.chat_template import Message as Message
    from bitquilt.talk.events import Answer as Answer
    from bitquilt.talk.events import Closing as Closing
    from bitquilt.talk.events import End as End
    from bitquilt.talk.events import Event as Event
    from bitquilt.talk.events import Reasoning as Reasoning
    from bitquilt.talk.events import Rollback as Rollback
    from bitquilt.talk.events import Scored as Scored
    from bitquilt.talk.prompt import Prompt as Prompt
    from bitquilt.talk.prompt import Turn as Turn
    from bitquilt.talk.prompt import compose as compose
    from bitquilt.talk.prompt import plain as plain
    from bitquilt.talk.sample import AnswerSettings as AnswerSettings
    from bitquilt.talk.session import Session as Session
    from bitquilt.talk.session import answer as answer
    from bitquilt.talk.votes import Votes as Votes
    from bitquilt.talk.votes import vote as vote

_HOMES = {
    "Answer": "bitquilt.talk.events",
    "AnswerSettings": "bitquilt.talk.sample",
    "Closing": "bitquilt.talk.events",
    "End": "bitquilt.talk.events",
    "Event": "bitquilt.talk.events",
    "Message": "bitquilt.models.chat_template",
    "Prompt": "bitquilt.talk.prompt",
    "Reasoning": "bitquilt.talk.events",
    "Rollback": "bitquilt.talk.events",
    "Scored": "bitquilt.talk.events",
    "Session": "bitquilt.talk.session",
    "Turn": "bitquilt.talk.prompt",
    "Votes": "bitquilt.talk.votes",
    "answer": "bitquilt.talk.session",
    "compose": "bitquilt.talk.prompt",
    "plain": "bitquilt.talk.prompt",
    "vote": "bitquilt.talk.votes",
}
"""Public name → the module that defines it."""

__all__ = list(_HOMES)


__getattr__, __dir__ = lazily(__name__, _HOMES)
