"""Serve a model to programs and people: OpenAI's API over :mod:`bitquilt.talk`, and a chat page.

In: requests over HTTP for one model, many at a time. Out: answers, whole or as events while they
are made, the page, and figures for Prometheus.

:mod:`.app` has the paths, :mod:`.requests` and :mod:`.responses` the bodies, :mod:`.scheduler` the
one engine that makes all answers, :mod:`.markdown` what the page shows of them.
"""
