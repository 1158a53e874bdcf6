"""Serve a model to programs and people: OpenAI's API over :mod:`bitquilt.talk`, and a chat page.

:mod:`.app` has the paths, :mod:`.requests` and :mod:`.responses` the bodies, :mod:`.scheduler` the
one engine that makes all answers.
"""
