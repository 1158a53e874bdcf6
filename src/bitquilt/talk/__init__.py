"""Talking to a model: a conversation in, typed events out, and always an end.

``Session`` keeps a conversation, ``answer`` answers one prompt, ``vote`` several times at once.
"""

from bitquilt.models.chat_template import Message
from bitquilt.talk.events import Answer, Closing, End, Event, Reasoning, Rollback
from bitquilt.talk.prompt import Prompt, compose
from bitquilt.talk.sample import AnswerSettings
from bitquilt.talk.session import Session, answer
from bitquilt.talk.votes import Votes, vote

__all__ = [
    "Answer",
    "AnswerSettings",
    "Closing",
    "End",
    "Event",
    "Message",
    "Prompt",
    "Reasoning",
    "Rollback",
    "Session",
    "Votes",
    "answer",
    "compose",
    "vote",
]
