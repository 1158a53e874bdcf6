"""Serve a model to programs and people: OpenAI's APIs and Ollama's over :mod:`bitquilt.talk`.

In: requests over HTTP for one model, many at a time. Out: answers, whole or as events while they
are made, a chat page, and figures for Prometheus.

:mod:`.app` has the paths and :mod:`.access` says who may ask. Bodies of requests are in
:mod:`.requests`, :mod:`.messages`, :mod:`.structured` and :mod:`.tools`, those of answers in
:mod:`.responses` and :mod:`.logprobs`, and those of other APIs in :mod:`.openai_responses` and
:mod:`.ollama`. :mod:`.scheduler` has the one engine that makes all answers, :mod:`.answering`
sends them, and :mod:`.markdown` is what the page shows of them. :mod:`.http_server` listens, and
stops.
"""
