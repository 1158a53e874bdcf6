"""One engine, many who ask: whoever comes joins the batch that is under way, or waits for a place.

The engine belongs to one thread. Callers live in an event loop; between the two, requests go
through a queue and events through :class:`PendingAnswer`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue

from bitquilt.engines import Engine, Stream
from bitquilt.errors import EngineCrashedError, UserError
from bitquilt.serve.errors import RefusedError, invalid
from bitquilt.talk import Answer, End, Event, Reasoning
from bitquilt.talk.sample import Sample

JOIN_SECONDS = 5
RETRY = "try again in a moment"
SHUTTING_DOWN = RefusedError(503, "server_error", f"the server is shutting down; {RETRY}")

Prepare = Callable[[Engine], Sample]
"""What a request becomes once the engine can be asked about it; raises UserError."""


class PendingAnswer:
    """One answer, from the thread that makes it to whoever waits for it."""

    def __init__(self, prepare: Prepare) -> None:
        """Must be made where it is awaited."""
        self.prepare = prepare
        self.sample: Sample | None = None
        self.left = 0
        """Tokens that its present request may still bring."""
        self.abandoned = False
        """Nobody waits any more."""
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._told: deque[Event | RefusedError] = deque()

    def tell(self, events: Iterable[Event | RefusedError]) -> None:
        """From the engine's thread: something has happened."""
        self._told.extend(events)
        with suppress(RuntimeError):  # the loop is gone, and whoever waited with it
            self._loop.call_soon_threadsafe(self._ready.set)

    async def events(self) -> AsyncGenerator[Event, None]:
        """All of them up to the end; text that has piled up comes in one piece.

        Raises:
            RefusedError: there is no answer, or no more of it.
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
    """The thread that the engine belongs to."""

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        parallel: int,
        queue: int,
        ended: Callable[[End], None] = lambda _: None,
    ) -> None:
        """Load the model.

        Args:
            open_engine: called again after a crash.
            parallel: answers that are made at a time.
            queue: requests that may wait for a place.
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
        self._jobs: set[PendingAnswer] = set()
        """Of the event loop; the thread has its own view of them:"""
        self._waiting: deque[PendingAnswer] = deque()
        self._rows: dict[int, PendingAnswer] = {}
        self._leaving = self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Answers that are being made."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Requests without a place."""
        return max(0, len(self._jobs) - len(self._rows))

    @property
    def healthy(self) -> bool:
        """Whether a request would be answered now."""
        return self._engine is not None and not self._leaving

    async def answer(self, prepare: Prepare) -> AsyncGenerator[Event, None]:
        """Answer one request; close the iterator to stop before the end.

        Raises:
            RefusedError: the request is bad, there are too many of them, the engine failed.
        """
        if self._leaving:
            raise SHUTTING_DOWN
        if len(self._jobs) >= self.parallel + self.queue:
            raise RefusedError(
                429,
                "rate_limit_error",
                f"{self.parallel} answers are being made and {self.queue} requests wait; {RETRY}",
            )
        job = PendingAnswer(prepare)
        self._jobs.add(job)
        self._inbox.put(job)
        try:
            async for event in job.events():
                yield event
        finally:
            job.abandoned = True
            self._jobs.remove(job)

    def drain(self, seconds: float) -> None:
        """Take no more requests, and cut in so many seconds what is not finished by then."""
        self._leaving = True
        timer = threading.Timer(seconds, self._cut)
        timer.daemon = True
        timer.start()

    def close(self) -> None:
        """End what is under way and free the model."""
        self._leaving = True
        self._cut()
        self._inbox.put(None)
        self._thread.join(JOIN_SECONDS)

    def _cut(self) -> None:
        for job in list(self._jobs):
            job.tell([SHUTTING_DOWN])
            job.abandoned = True

    def _run(self) -> None:
        """The thread: batch after batch."""
        while not self._closed:
            try:
                self._take(self._inbox.get())
                while self._waiting and not self._closed:
                    self._batch(self._loaded())
            except UserError as error:
                self._fail(str(error))
                if isinstance(error, EngineCrashedError):
                    self._reload()
            except Exception:  # a bug must not leave everybody waiting
                logging.getLogger(__name__).exception("an answer failed")
                self._fail(f"the server failed; {RETRY}")
                self._reload()
        if self._engine:
            self._engine.close()

    def _batch(self, engine: Engine) -> None:
        """Make answers until nobody waits for one."""
        with engine.stream([]) as stream:
            self._admit(stream)
            while self._rows:
                for row, piece in stream:
                    job = self._rows.get(row)
                    if job is None:
                        continue  # the engine was a little ahead
                    assert job.sample
                    job.left -= 1
                    self._tell(job, job.sample.push(piece))
                    if job.sample.waiting and not job.left:
                        self._tell(job, job.sample.ran_out())
                    if job.abandoned or not job.sample.waiting:
                        stream.drop(row)
                        del self._rows[row]
                        self._go_on(job, stream)
                    self._receive()
                    self._admit(stream)

    def _receive(self) -> None:
        """Take what has come meanwhile."""
        with suppress(Empty):
            while True:
                self._take(self._inbox.get_nowait())

    def _take(self, job: PendingAnswer | None) -> None:
        """Look at a request, and queue it or say what is wrong with it."""
        if job is None:
            self._closed = True
            return
        if job.abandoned:
            return
        self._waiting.append(job)
        engine = self._loaded()
        try:
            job.sample = job.prepare(engine)
        except EngineCrashedError:
            raise
        except UserError as error:
            self._waiting.pop()
            job.tell([invalid(str(error))])
        except Exception:  # nothing was asked of the engine yet: the others can go on
            self._waiting.pop()
            logging.getLogger(__name__).exception("a request could not be prepared")
            job.tell([RefusedError(500, "server_error", f"the server failed; {RETRY}")])

    def _admit(self, stream: Stream) -> None:
        """Give free places to those who wait."""
        while self._waiting and len(self._rows) < self.parallel:
            job = self._waiting.popleft()
            assert job.sample
            self._tell(job, job.sample.begin())
            self._go_on(job, stream)

    def _go_on(self, job: PendingAnswer, stream: Stream) -> None:
        """Continue an answer that has not ended."""
        assert job.sample
        if not (job.abandoned or job.sample.ended):
            request = job.sample.request()
            job.left = request.max_tokens
            self._rows[stream.add(request)] = job

    def _tell(self, job: PendingAnswer, events: Iterable[Event]) -> None:
        said = list(events)
        job.tell(said)
        for event in said:
            if isinstance(event, End):
                self._ended(event)

    def _fail(self, sentence: str) -> None:
        """Nobody who waits now gets an answer, or more of it."""
        for job in (*self._rows.values(), *self._waiting):
            job.tell([RefusedError(500, "server_error", sentence)])
        self._rows.clear()
        self._waiting.clear()

    def _loaded(self) -> Engine:
        """The engine, loaded again if it is gone."""
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
