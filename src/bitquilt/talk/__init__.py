"""Talking to a model: a conversation in, typed events out, and always an end.

``Session`` keeps a conversation, ``answer`` answers one prompt, ``vote`` several times at once.
"""

from bitquilt.models.chat_template import Message
from bitquilt.talk.events import Answer, Closing, End, Event, Reasoning, Rescue
from bitquilt.talk.prompt import Prompt, compose
from bitquilt.talk.sample import Settings
from bitquilt.talk.session import Session, answer
from bitquilt.talk.votes import Votes, vote

__all__ = [
    "Answer",
    "Closing",
    "End",
    "Event",
    "Message",
    "Prompt",
    "Reasoning",
    "Rescue",
    "Session",
    "Settings",
    "Votes",
    "answer",
    "compose",
    "vote",
]
