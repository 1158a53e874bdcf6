"""The engine's side: a process that loads one model and answers requests until its input ends.

    python -m bitquilt.engines.child llamacpp '{"path": …}'

Requests and answers have the form of :mod:`.wire`. A failure that the user can do something about
is answered as ``{"error": sentence}``; any other ends the process, and the last line of its
standard error says why.

    {"do": "tokenize", "text", "add_special"}  ──> {"tokens"}, at once, also while a generation runs
    {"do": "decode", "tokens", "special"}      ──> {"text"}, likewise
    {"do": "see", "image"}                     ──> {"seen"}: tokens, or the sentence of a failure
    {"do": "logits", "tokens"}                 ──> {"shape"} and float32 [L, V]
    {"do": "stream", "requests"}               ──> {"said", "prefilled", "ended"}, again and again
    {"do": "add", "request"}, {"do": "drop", "row"}: the generation that runs, which goes on

``ended`` is 0 while a row runs; in the last message it is the number of rows that the child knew
of, so that the other side can tell whether a row that it has just added was among them.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from queue import Queue
from typing import Any, BinaryIO

from bitquilt.engines.backend import Backend, Logits
from bitquilt.engines.drafting import Drafter
from bitquilt.engines.engine import GenerationRequest, Sampling
from bitquilt.engines.generation import Generation
from bitquilt.engines.wire import Packet, packed_token, receive, send
from bitquilt.errors import EngineMissingError, UserError

BACKENDS = {
    "llama.cpp": ("bitquilt.engines.llamacpp_backend", "LlamaCppBackend"),
    "mlx-lm": ("bitquilt.engines.mlx_backend", "MlxBackend"),
}

MESSAGE_SECONDS = 0.02
"""Tokens go out at most this often, and after a step: a message for each would slow a fast model,
and what waits for the next step lets the next request wait, too. The end of a row goes out at once,
for another may wait for its place."""

TOKENIZER_STACK = 1 << 30
"""Bytes of address space for the thread that tokenizes. Where llama.cpp splits text for tekken and
gpt-4o, a function calls itself for each character of a run of one kind: 30,000 spaces took more
than the usual 8 MB and ended the process (ggml-org/llama.cpp#27783)."""


def run_child(kind: str, options: str) -> None:
    """Load the model, tell about it, and serve requests."""
    # Ctrl-C reaches every process of a terminal; the parent decides what it stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries print to standard output as they please: keep it for answers, give them the other.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        backend, drafter = _load(kind, json.loads(options))
    except UserError as error:
        send(answers, {"error": error.sentence, "missing": isinstance(error, EngineMissingError)})
        return
    send(answers, asdict(backend.info))
    requests: Queue[Packet | None] = Queue()
    service = _Service(backend, requests, answers, drafter)
    threading.stack_size(TOKENIZER_STACK)
    threading.Thread(target=_listen, args=(os.fdopen(0, "rb"), service), daemon=True).start()
    service.run()


def _load(kind: str, options: dict[str, Any]) -> tuple[Backend, Drafter | None]:
    """Load a model, and the one that writes ahead for it if the options name one as ``draft``."""
    draft = options.pop("draft", None)
    module, name = BACKENDS[kind]
    load = getattr(importlib.import_module(module), name)
    backend = load(**options)
    if draft is None:
        return backend, None
    options.pop("vision", None)
    return backend, Drafter(backend, load(**{**options, "path": draft}))


def _listen(stream: BinaryIO, service: _Service) -> None:
    """Hand over requests, so that a running generation hears of them, and the input's end."""
    with suppress(EOFError):
        while True:
            service.hear(receive(stream)[0])
    service.hear(None)


class _Service:
    """Does what is asked, one thing after the other; a generation looks for orders as it runs."""

    def __init__(
        self,
        backend: Backend,
        requests: Queue[Packet | None],
        answers: BinaryIO,
        drafter: Drafter | None = None,
    ) -> None:
        self._backend, self._drafter = backend, drafter
        self._requests, self._answers = requests, answers
        self._sending = threading.Lock()
        self._generation: Generation | None = None
        self._rows = 0
        """How many rows the generation was given so far."""

    def hear(self, order: Packet | None) -> None:
        """Take an order from another thread; what concerns tokens is answered at once.

        A new answer joins the others a step earlier if its prompt need not wait for a step.
        """
        if order is not None and order["do"] in ("tokenize", "decode"):
            with suppress(Exception):  # it is tried again where a failure is told
                self._obey(order)
                return
        self._requests.put(order)

    def run(self) -> None:
        """Serve until there are no more requests."""
        while (request := self._requests.get()) is not None:
            try:
                self._obey(request)
                if request["do"] in ("stream", "add") and self._generation:
                    self._run_generation(self._generation)
            except UserError as error:
                self._generation = None
                self._send({"error": error.sentence})

    def _obey(self, order: Packet) -> None:
        """Do what is asked, but leave the generation to run; orders to one that failed are void."""
        if order["do"] == "tokenize":
            tokens = self._backend.tokenize(order["text"], order["add_special"])
            self._send({"tokens": tokens})
        elif order["do"] == "decode":
            self._send({"text": self._backend.decode(order["tokens"], order["special"])})
        elif order["do"] == "see":
            self._send({"seen": self._see(order["image"])})
        elif order["do"] == "logits":
            self._send({}, self._backend.window(order["tokens"]))
        elif order["do"] == "stream":
            requests = [_request(fields) for fields in order["requests"]]
            self._generation = Generation(self._backend, requests, self._drafter)
            self._rows = len(requests)
        elif self._generation and order["do"] == "add":
            self._generation.add(_request(order["request"]))
            self._rows += 1
        elif self._generation and order["do"] == "drop":
            self._generation.drop(order["row"])

    def _see(self, image: str) -> list[int] | str:
        """Encode an image; a generation that runs goes on where that fails."""
        try:
            return self._backend.see(base64.b64decode(image))
        except UserError as error:
            return error.sentence

    def _run_generation(self, generation: Generation) -> None:
        """Run a generation and send its tokens, several in a message where they come fast."""
        said: list[tuple[Any, ...]] = []
        sent = time.monotonic()
        for step in generation.steps():
            said += [(row, *packed_token(piece)) for row, piece in step]
            if generation.making_room or time.monotonic() - sent > MESSAGE_SECONDS:
                self._send({"said": said, "prefilled": generation.prefilled, "ended": 0})
                said, sent = [], time.monotonic()
            while not self._requests.empty():
                order = self._requests.get()
                if order is None:  # the other side is gone
                    raise SystemExit
                self._obey(order)
        self._send({"said": said, "prefilled": generation.prefilled, "ended": self._rows})

    def _send(self, answer: Packet, array: Logits | None = None) -> None:
        with self._sending:
            send(self._answers, answer, array)


def _request(fields: Packet) -> GenerationRequest:
    return GenerationRequest(**{**fields, "sampling": Sampling(**fields["sampling"])})


if __name__ == "__main__":
    run_child(*sys.argv[1:])
