"""The engine's side: a process that loads one model and answers requests until its input ends.

    python -m bitquilt.engines.child llamacpp '{"path": …}'

Requests and answers are those of :mod:`.wire`. A failure that the user can do something about is
answered as ``{"error": sentence}``; any other ends the process, and the last line of its standard
error tells why.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, astuple
from queue import Queue
from typing import Any, BinaryIO

from bitquilt.engines.backend import Backend
from bitquilt.engines.engine import Request, Sampling
from bitquilt.engines.generation import Generation
from bitquilt.engines.wire import Message, receive, send
from bitquilt.errors import EngineMissingError, UserError

BACKENDS = {
    "llamacpp": "bitquilt.engines.llamacpp_backend",
    "mlx": "bitquilt.engines.mlx_backend",
}

MESSAGE_SECONDS = 0.02
"""Pieces of text go out at most this often: a message for every token would slow a fast model."""


def main(kind: str, options: str) -> None:
    """Load the model, say what it is, serve."""
    # Ctrl-C reaches every process of a terminal; ours decides what it stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries print to standard output as they please: keep it for ourselves, give them the other.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        backend = _load(kind, json.loads(options))
    except UserError as error:
        send(answers, {"error": str(error), "missing": isinstance(error, EngineMissingError)})
        return
    send(answers, asdict(backend.info))
    requests: Queue[Message | None] = Queue()
    threading.Thread(target=_listen, args=(os.fdopen(0, "rb"), requests), daemon=True).start()
    _serve(backend, requests, answers)


def _load(kind: str, options: dict[str, Any]) -> Backend:
    module = importlib.import_module(BACKENDS[kind])
    backend: Backend = module.load(**options)
    return backend


def _listen(stream: BinaryIO, requests: Queue[Message | None]) -> None:
    """Queue what is asked, so that a generation can be told to stop meanwhile; None at the end."""
    with suppress(EOFError):
        while True:
            requests.put(receive(stream)[0])
    requests.put(None)


def _serve(backend: Backend, requests: Queue[Message | None], answers: BinaryIO) -> None:
    while (request := requests.get()) is not None:
        try:
            _answer(backend, request, requests, answers)
        except UserError as error:
            send(answers, {"error": str(error)})


def _answer(
    backend: Backend, request: Message, requests: Queue[Message | None], answers: BinaryIO
) -> None:
    if request["do"] == "tokenize":
        send(answers, {"tokens": backend.tokenize(request["text"], request["add_special"])})
    elif request["do"] == "logits":
        send(answers, {}, backend.window(request["tokens"]))
    elif request["do"] == "stream":
        generation = Generation(backend, [_request(fields) for fields in request["requests"]])
        _say(generation, requests, answers)
    # what else comes here is a "drop" of a generation that had ended by itself


def _request(fields: Message) -> Request:
    return Request(**{**fields, "sampling": Sampling(**fields["sampling"])})


def _say(generation: Generation, requests: Queue[Message | None], answers: BinaryIO) -> None:
    """Send pieces, several in a message where they come fast, and obey what comes meanwhile."""
    said: list[tuple[Any, ...]] = []
    sent = time.monotonic()
    for row, piece in generation:
        said.append((row, *astuple(piece)))
        if time.monotonic() - sent > MESSAGE_SECONDS:
            send(answers, {"said": said, "fed": generation.fed})
            said, sent = [], time.monotonic()
        while not requests.empty():
            order = requests.get()
            if order is None:  # nobody is there any more
                raise SystemExit
            generation.drop(order["row"])
    send(answers, {"said": said, "fed": generation.fed, "done": True})


if __name__ == "__main__":
    main(*sys.argv[1:])
