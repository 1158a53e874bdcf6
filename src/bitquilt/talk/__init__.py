"""Talking to a model: a conversation in, typed events out, and always an end.

:class:`.session.Session` keeps a conversation, :func:`.session.answer` answers one prompt,
:func:`.votes.vote` several times at once. What they can be asked for is in :mod:`.config`.
"""
