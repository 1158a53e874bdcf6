"""One engine for many requests: each joins the batch that is under way, or waits for its turn.

The engine belongs to one thread. Callers live in an event loop. Requests go to the thread through a
queue, and events come back through each request's :class:`PendingAnswer`:

    answer() ──> _inbox ── _prepare() ──> _waiting ── _admit() ──> _rows ── End ──> gone
                               │                                    │ ^
                               └─ refused ──> gone                  └─┘ next leg: _continue()

``_rows`` holds the answers of the open stream by row, at most ``parallel`` of them. Each leg has a
row of its own, so an answer moves to another row after a rollback. A caller who leaves sets
``abandoned``; the thread drops the answer when it meets it next. If the engine fails, ``_fail()``
refuses everything in ``_waiting`` and ``_rows``.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue

from bitquilt.engines import Engine, GeneratedToken, Stream
from bitquilt.errors import EngineCrashedError, UserError
from bitquilt.serve.errors import RefusedError, for_clients, invalid
from bitquilt.talk.events import Answer, End, Event, Reasoning
from bitquilt.talk.sample import Sample

JOIN_SECONDS = 5
"""``close()`` waits so long for the thread to end."""
RETRY = "try again in a moment"
SHUTTING_DOWN = RefusedError(503, "server_error", f"the server is shutting down; {RETRY}")

Prepare = Callable[[Engine], Sample]
"""Makes a sample of a request, with the engine to tokenize its prompt; raises UserError."""


class PendingAnswer:
    """One answer, between the thread that makes it and the caller who waits for it."""

    def __init__(self, prepare: Prepare) -> None:
        """Make it in the event loop where :meth:`events` is awaited."""
        self.prepare = prepare
        self.sample: Sample | None = None
        self.left = 0
        """How many tokens its present row can still bring."""
        self.abandoned = False
        """Whether the caller has left."""
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._told: deque[Event | RefusedError] = deque()

    def tell(self, events: Iterable[Event | RefusedError]) -> None:
        """Hand events over, from the engine's thread."""
        self._told.extend(events)
        with suppress(RuntimeError):  # the loop is gone, and whoever waited with it
            self._loop.call_soon_threadsafe(self._ready.set)

    async def events(self) -> AsyncGenerator[Event, None]:
        """All events up to the end; text that has piled up comes in one piece.

        Raises:
            RefusedError: the answer cannot be made, or not to its end.
        """
        while True:
            await self._ready.wait()
            self._ready.clear()
            while self._told:
                event = self._told.popleft()
                if isinstance(event, RefusedError):
                    raise event
                if isinstance(event, Reasoning | Answer):
                    event = type(event)(event.text + self._more(type(event)))
                yield event
                if isinstance(event, End):
                    return

    def _more(self, kind: type[Event]) -> str:
        text = ""
        while self._told and isinstance(event := self._told[0], kind):
            assert isinstance(event, Reasoning | Answer)
            self._told.popleft()
            text += event.text
        return text


class Scheduler:
    """Answers requests with one engine, in a thread of its own."""

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        parallel: int,
        queue: int,
        ended: Callable[[End], None] = lambda _: None,
    ) -> None:
        """Load the model.

        Args:
            open_engine: loads the model; called again after a crash.
            parallel: how many answers are made at a time.
            queue: how many more requests may wait.
            ended: called with the end of each answer.

        Raises:
            UserError: the model cannot be loaded.
        """
        self._open = open_engine
        self._engine: Engine | None = open_engine()
        self.info = self._engine.info
        self.parallel, self.queue = parallel, queue
        self._ended = ended
        self._inbox: SimpleQueue[PendingAnswer | None] = SimpleQueue()
        self._pending: set[PendingAnswer] = set()
        """Every request whose caller is still there; only the event loop changes it."""
        # Only the thread touches these, the state of what it has taken from the inbox:
        self._waiting: deque[PendingAnswer] = deque()
        self._rows: dict[int, PendingAnswer] = {}
        self._leaving = self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """How many answers are being made."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return max(0, len(self._pending) - len(self._rows))

    @property
    def healthy(self) -> bool:
        """Whether a request could be answered now."""
        return self._engine is not None and not self._leaving

    async def answer(self, prepare: Prepare) -> AsyncGenerator[Event, None]:
        """Answer one request; close the iterator to stop before the end.

        Raises:
            RefusedError: the request is bad, there are too many requests, or the engine failed.
        """
        if self._leaving:
            raise SHUTTING_DOWN
        if len(self._pending) >= self.parallel + self.queue:
            raise RefusedError(
                429,
                "rate_limit_error",
                f"{self.parallel} answers are being written and {self.queue} requests are "
                f"waiting; {RETRY}",
            )
        pending = PendingAnswer(prepare)
        self._pending.add(pending)
        self._inbox.put(pending)
        try:
            async for event in pending.events():
                yield event
        finally:
            pending.abandoned = True
            self._pending.remove(pending)

    def drain(self, seconds: float) -> None:
        """Refuse new requests, and cut answers that have not ended in so many seconds."""
        self._leaving = True
        timer = threading.Timer(seconds, self._cut)
        timer.daemon = True
        timer.start()

    def close(self) -> None:
        """End all answers and free the model."""
        self._leaving = True
        self._cut()
        self._inbox.put(None)
        self._thread.join(JOIN_SECONDS)

    def _cut(self) -> None:
        for pending in list(self._pending):
            pending.tell([SHUTTING_DOWN])
            pending.abandoned = True

    def _run(self) -> None:
        """Make answers until the scheduler is closed; this is the thread."""
        while not self._closed:
            try:
                self._prepare(self._inbox.get())
                while self._waiting and not self._closed:
                    self._batch(self._loaded())
            except EngineCrashedError as error:
                logging.getLogger(__name__).error(error.sentence)
                self._fail(RefusedError(500, "server_error", f"the engine crashed; {RETRY}"))
                self._reload()
            except UserError as error:
                self._fail(RefusedError(500, "server_error", for_clients(error)))
            except Exception:  # a bug must not leave everybody waiting
                logging.getLogger(__name__).exception("an answer failed")
                self._fail(RefusedError(500, "server_error", f"the server failed; {RETRY}"))
                self._reload()
        if self._engine:
            self._engine.close()

    def _batch(self, engine: Engine) -> None:
        """Make answers until nobody waits for one."""
        with engine.stream([]) as stream:
            self._admit(stream)
            while self._rows:
                for row, piece in stream:
                    pending = self._rows.get(row)
                    if pending is None:
                        continue  # a token of a dropped row: the engine was a little ahead
                    assert pending.sample
                    pending.left -= 1
                    self._push(pending, piece)
                    if pending.sample.waiting and not pending.left:
                        self._tell(pending, pending.sample.ran_out())
                    if pending.abandoned or not pending.sample.waiting:
                        stream.drop(row)
                        del self._rows[row]
                        self._continue(pending, stream)
                    self._receive()
                    self._admit(stream)

    def _push(self, pending: PendingAnswer, piece: GeneratedToken) -> None:
        """Hand a token to its answer; one that is no number ends this answer alone."""
        assert pending.sample
        try:
            self._tell(pending, pending.sample.push(piece))
        except UserError as error:
            pending.tell([RefusedError(500, "server_error", for_clients(error))])
            pending.abandoned = True

    def _receive(self) -> None:
        """Take the requests that came meanwhile."""
        with suppress(Empty):
            while True:
                self._prepare(self._inbox.get_nowait())

    def _prepare(self, pending: PendingAnswer | None) -> None:
        """Prepare a request and let it wait for its turn, or refuse it."""
        if pending is None:
            self._closed = True
            return
        if pending.abandoned:
            return
        self._waiting.append(pending)
        engine = self._loaded()
        try:
            pending.sample = pending.prepare(engine)
        except EngineCrashedError:
            raise
        except UserError as error:
            self._waiting.pop()
            pending.tell([invalid(for_clients(error))])
        except Exception:  # nothing was asked of the engine yet: the others can go on
            self._waiting.pop()
            logging.getLogger(__name__).exception("a request could not be prepared")
            pending.tell([RefusedError(500, "server_error", f"the server failed; {RETRY}")])

    def _admit(self, stream: Stream) -> None:
        """Begin answers for which there is room."""
        while self._waiting and len(self._rows) < self.parallel:
            pending = self._waiting.popleft()
            assert pending.sample
            self._tell(pending, pending.sample.begin())
            self._continue(pending, stream)

    def _continue(self, pending: PendingAnswer, stream: Stream) -> None:
        """Continue an answer that has not ended, in a new row."""
        assert pending.sample
        if not (pending.abandoned or pending.sample.ended):
            request = pending.sample.request()
            pending.left = request.max_tokens
            self._rows[stream.add(request)] = pending

    def _tell(self, pending: PendingAnswer, events: Iterable[Event]) -> None:
        said = list(events)
        pending.tell(said)
        for event in said:
            if isinstance(event, End):
                self._ended(event)

    def _fail(self, error: RefusedError) -> None:
        """Refuse every request that was taken: the engine failed under them."""
        for pending in (*self._rows.values(), *self._waiting):
            pending.tell([error])
        self._rows.clear()
        self._waiting.clear()

    def _loaded(self) -> Engine:
        """The engine; it is loaded again if it is gone."""
        if self._engine is None:
            self._engine = self._open()
        return self._engine

    def _reload(self) -> None:
        """Start the engine again; if that fails, the next request tries."""
        if self._engine:
            self._engine.close()
            self._engine = None
        with suppress(UserError):
            self._loaded()
