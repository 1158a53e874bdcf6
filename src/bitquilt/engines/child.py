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
import sys
from dataclasses import asdict
from typing import Any, BinaryIO

from bitquilt.engines.backend import Backend, generate
from bitquilt.engines.engine import Sampling
from bitquilt.engines.wire import Message, receive, send
from bitquilt.errors import EngineMissingError, UserError

BACKENDS = {
    "llamacpp": "bitquilt.engines.llamacpp_backend",
    "mlx": "bitquilt.engines.mlx_backend",
}


def main(kind: str, options: str) -> None:
    """Load the model, say what it is, serve."""
    # Libraries print to standard output as they please: keep it for ourselves, give them the other.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        backend = _load(kind, json.loads(options))
    except UserError as error:
        send(answers, {"error": str(error), "missing": isinstance(error, EngineMissingError)})
        return
    send(answers, asdict(backend.info))
    _serve(backend, os.fdopen(0, "rb"), answers)


def _load(kind: str, options: dict[str, Any]) -> Backend:
    module = importlib.import_module(BACKENDS[kind])
    backend: Backend = module.load(**options)
    return backend


def _serve(backend: Backend, requests: BinaryIO, answers: BinaryIO) -> None:
    while True:
        try:
            request, _ = receive(requests)
        except EOFError:
            return
        try:
            _answer(backend, request, answers)
        except UserError as error:
            send(answers, {"error": str(error)})


def _answer(backend: Backend, request: Message, answers: BinaryIO) -> None:
    if request["do"] == "tokenize":
        send(answers, {"tokens": backend.tokenize(request["text"], request["add_special"])})
    elif request["do"] == "logits":
        send(answers, {}, backend.window(request["tokens"]))
    else:
        sampling = Sampling(**request["sampling"])
        for piece in generate(backend, request["tokens"], sampling, request["max_tokens"]):
            send(answers, {"text": piece})
        send(answers, {"done": True})


if __name__ == "__main__":
    main(*sys.argv[1:])
