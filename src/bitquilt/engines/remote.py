"""Our side of an engine that lives in a child process, so that its crash is a sentence here."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from enum import Enum
from queue import SimpleQueue
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from bitquilt.engines.engine import Engine, GeneratedToken, GenerationRequest, ModelInfo, Sampling
from bitquilt.engines.wire import Packet, receive, send, unpacked_token
from bitquilt.errors import EngineCrashedError, EngineMissingError, UserError

EXIT_SECONDS = 10
"""A child whose input has ended is killed if it is not gone after this time."""
LONGEST_RUN = 3_000_000
"""Characters of one kind in a row that the child's stack bears (its ``TOKENIZER_STACK``)."""
_RUN = re.compile(r"[^\W\d_]+|\s+|[^\w\s]+|[\d_]+")
Received = tuple[Packet, npt.NDArray[np.float32] | None]
"""What a child says, with an array where it has one."""
STDERR_TAIL = 65_536
"""Bytes of the child's last words in which the reason of a crash is looked for."""


class Arrival(Enum):
    """What arrives from either side of the wire that is not a message."""

    CRASHED = "the child is gone"
    INTERRUPTED = "whoever waits for the stream shall look around"


class RemoteEngine(Engine):
    """An :class:`~bitquilt.engines.engine.Engine` that asks a child process.

    A thread reads what the child says, so that another thread can end the wait for it.
    """

    def __init__(self, kind: str, options: dict[str, Any]) -> None:
        """Start the process and load the model.

        Args:
            kind: a backend of :mod:`.child`.
            options: what the backend's constructor takes; ``path`` names the model.

        Raises:
            EngineMissingError: the engine is not installed, or not in the version that is needed.
            UserError: the model cannot be loaded, or the engine crashes on it.
        """
        self._kind = kind
        self._subject = f"{kind} on {options['path']}"
        # A file, not a pipe: nobody has to keep reading while the engine talks.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        self._early: deque[Packet] = deque()
        """What a stream said while the answer to another request was awaited."""
        self._arrived: SimpleQueue[Received | Arrival] = SimpleQueue()
        self._interrupted = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bitquilt.engines.child", kind, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()
        try:
            found, _ = self._receive()
            _raise_errors(found)
        except BaseException:
            self.close()
            raise
        sampling = Sampling(**found.pop("sampling"))
        self.info = ModelInfo(**found | {"name": options["path"]}, sampling=sampling)

    @property
    def pid(self) -> int:
        """The number of the process, for whoever measures what it takes."""
        return self._process.pid

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """See :class:`~bitquilt.engines.engine.Engine`."""
        if self._kind == "llama.cpp" and len(text) > LONGEST_RUN:
            _require_runs(text)
        self._send({"do": "tokenize", "text": text, "add_special": add_special})
        return list(self._answer("tokens"))

    def see(self, image: bytes) -> list[int]:
        """See :class:`~bitquilt.engines.engine.Engine`."""
        self._send({"do": "see", "image": base64.b64encode(image).decode()})
        answer = self._answer("seen")
        if isinstance(answer, str):
            raise UserError(answer)
        return list(answer)

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """See :class:`~bitquilt.engines.engine.Engine`."""
        self._send({"do": "decode", "tokens": list(tokens), "special": special})
        return str(self._answer("text"))

    def _answer(self, field: str) -> Any:
        """Wait for an answer that has this field; what a stream says meanwhile is kept."""
        while field not in (answer := self._receive()[0]):
            self._early.append(answer)
        return answer[field]

    def logits(self, tokens: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.float32]]:
        """See :class:`~bitquilt.engines.engine.Engine`."""
        for window in tokens:
            self._send({"do": "logits", "tokens": window.tolist()})
            message, array = self._receive()
            _raise_errors(message)
            assert array is not None
            yield array

    def stream(self, requests: Sequence[GenerationRequest]) -> RemoteStream:
        """See :class:`~bitquilt.engines.engine.Engine`."""
        self._send({"do": "stream", "requests": [asdict(request) for request in requests]})
        return RemoteStream(len(requests), self._send, self._said, self._interrupt)

    def _said(self) -> Packet | None:
        """Return the next message of the stream, or None as soon as it is interrupted."""
        if not (self._early or self._interrupted) and (arrived := self._next_arrival()):
            self._early.append(arrived[0])
        if self._interrupted:
            self._interrupted = False
            return None
        message = self._early.popleft()
        _raise_errors(message)
        return message

    def _interrupt(self) -> None:
        self._arrived.put(Arrival.INTERRUPTED)

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):  # a request that a dead child never read is still in the buffer
            _binary(self._process.stdin).close()
        try:
            self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        _binary(self._process.stdout).close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, request: Packet) -> None:
        try:
            send(_binary(self._process.stdin), request)
        except OSError:
            raise self._crash() from None

    def _listen(self) -> None:
        """Read to the child's end; this is the thread."""
        # a file object of its own: Python ends with an error where this one is locked by a thread
        said = _binary(self._process.stdout).fileno()
        with open(said, "rb", closefd=False) as answers, suppress(EOFError):
            while True:
                self._arrived.put(receive(answers))
        self._arrived.put(Arrival.CRASHED)

    def _receive(self) -> Received:
        """Wait for a message; an interruption meanwhile is for whoever waits for the stream."""
        while (arrived := self._next_arrival()) is None:
            pass
        return arrived

    def _next_arrival(self) -> Received | None:
        """Wait for a message or an interruption, which is kept in mind."""
        arrived = self._arrived.get()
        if arrived is Arrival.CRASHED:
            self._arrived.put(arrived)  # for whoever asks the dead child next
            raise self._crash()
        if arrived is Arrival.INTERRUPTED:
            self._interrupted = True
            return None
        return arrived

    def _crash(self) -> EngineCrashedError:
        code = self._process.wait()
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - STDERR_TAIL))
        lines = self._errors.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        reason = said[-1] if said else f"exit status {code}"
        return EngineCrashedError(
            f"{self._subject} crashed: {reason}; check the file with bitquilt inspect"
        )


class RemoteStream:
    """A :class:`~bitquilt.engines.engine.Stream` of a child process, which runs a little ahead.

    ``_rows`` counts the rows that were ever asked for, ``_running`` holds those that were not
    dropped. With every message the child says how many rows it knew of when all of them had ended,
    or 0 while one is running:

        open ── a message with "ended" == _rows ──> done
          ^ └── one with fewer: it had not heard of the newest rows yet
          └──────────────── add() ───────────────────┘

    ``close()`` drops what is running and reads messages until the stream is done, so that the next
    answer from the child belongs to the next request.
    """

    def __init__(
        self,
        rows: int,
        send: Callable[[Packet], None],
        receive: Callable[[], Packet | None],
        interrupt: Callable[[], None],
    ) -> None:
        self.prefilled = 0
        self.interrupt = interrupt
        self._rows = rows
        self._running = set(range(rows))
        self._done = False
        self._send, self._receive = send, receive

    def __iter__(self) -> Iterator[tuple[int, GeneratedToken]]:
        """See :class:`~bitquilt.engines.engine.Stream`."""
        while not self._done:
            if (message := self._next()) is None:
                return
            for row, *fields in message["said"]:
                yield row, unpacked_token(fields)

    def add(self, request: GenerationRequest) -> int:
        """See :class:`~bitquilt.engines.engine.Stream`."""
        row = self._rows
        self._send({"do": "add", "request": asdict(request)})
        self._running.add(row)
        self._rows, self._done = row + 1, False
        return row

    def drop(self, row: int) -> None:
        """See :class:`~bitquilt.engines.engine.Stream`."""
        if row in self._running:
            self._running.remove(row)
            self._send({"do": "drop", "row": row})

    def close(self) -> None:
        """See :class:`~bitquilt.engines.engine.Stream`."""
        if not self._done:
            for row in list(self._running):
                self.drop(row)
        while not self._done:
            self._next()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self) -> Packet | None:
        """Wait for the next message; None where the stream is interrupted."""
        self._done = True  # unless the child lives to say otherwise
        message = self._receive()
        if message is None:
            self._done = False
            return None
        self._done = message["ended"] == self._rows  # it may not know of the newest yet
        self.prefilled = message["prefilled"]
        return message


def _require_runs(text: str) -> None:
    """Refuse a text that would end the process of the engine."""
    if any(run.end() - run.start() > LONGEST_RUN for run in _RUN.finditer(text)):
        raise UserError(
            f"the text has more than {LONGEST_RUN:,} letters, spaces or signs in a row, which "
            "llama.cpp cannot read; leave some out"
        )


def _raise_errors(message: Packet) -> None:
    if "error" in message:
        kind = EngineMissingError if message.get("missing") else UserError
        raise kind(message["error"])


def _binary(stream: Any) -> BinaryIO:
    assert stream is not None
    binary: BinaryIO = stream
    return binary
