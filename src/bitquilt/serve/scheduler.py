"""One engine for many requests: their answers join the batch that is under way, or wait.

The engine belongs to one thread. Callers live in an event loop. Requests go to the thread through a
queue, and events come back through each :class:`PendingRequest`, which wants one answer or several:

    answer() ──> _inbox ── _prepare() ──> _waiting ── _admit() ──> _rows ── End ──> gone
                               │                                    │ ^
                               └─ refused ──> gone                  └─┘ next leg: _continue()

Everything about a request is checked in ``_prepare()``, before the first of its answers joins.
``_rows`` holds the answers of the open stream by row, at most ``parallel`` of them. Each leg has a
row of its own, so an answer moves to another row after a rollback. A caller who leaves sets
``abandoned``; the thread drops the answers when it meets them next. What fails in one answer ends
its request alone; if the engine fails, ``_fail()`` refuses everything in ``_waiting`` and
``_rows``.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from bitquilt.engines import Engine, GeneratedToken, Stream
from bitquilt.errors import EngineCrashedError, UserError
from bitquilt.serve.errors import RefusedError, for_clients, invalid
from bitquilt.talk.events import Answer, End, Event, Reasoning
from bitquilt.talk.sample import Sample

JOIN_SECONDS = 5
"""``close()`` waits so long for the thread to end."""
RETRY = "try again in a moment"
SHUTTING_DOWN = RefusedError(503, "server_error", f"the server is shutting down; {RETRY}")
CRASHED = RefusedError(500, "server_error", f"the engine crashed; {RETRY}")
FAILED = RefusedError(500, "server_error", f"the server failed; {RETRY}")

Asked = TypeVar("Asked")
Prepare = Callable[[Engine], Sequence[Sample]]
"""Makes the samples of a request, with the engine to tokenize its prompts; raises UserError."""


class PendingRequest:
    """A request, between the thread that makes its answers and the caller who waits for them."""

    def __init__(self, prepare: Prepare) -> None:
        """Make it in the event loop where :meth:`events` is awaited."""
        self.prepare = prepare
        self.abandoned = False
        """Whether nobody wants the answers any more."""
        self.running = 0
        """How many of its answers are being made."""
        self._answers = 1
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._told: deque[tuple[int, Event] | RefusedError] = deque()

    def expect(self, answers: int) -> None:
        """Take note of how many answers it wants, which is known once it is prepared."""
        self._answers = answers
        self._wake()

    def tell(self, index: int, events: Iterable[Event]) -> None:
        """Hand over events of one of the answers, from the engine's thread."""
        self._told.extend((index, event) for event in events)
        self._wake()

    def refuse(self, error: RefusedError) -> None:
        """End the request with an error, from any thread."""
        self.abandoned = True
        self._told.append(error)
        self._wake()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop is gone, and whoever waited with it
            self._loop.call_soon_threadsafe(self._ready.set)

    async def events(self) -> AsyncGenerator[tuple[int, Event], None]:
        """All events up to the end of the last answer; text that has piled up comes in one piece.

        Raises:
            RefusedError: an answer cannot be made, or not to its end.
        """
        ended = 0
        while ended < self._answers:
            await self._ready.wait()
            self._ready.clear()
            while self._told:
                told = self._told.popleft()
                if isinstance(told, RefusedError):
                    raise told.with_traceback(None)  # some are raised again and again
                index, event = told
                if isinstance(event, Reasoning | Answer):
                    event = type(event)(event.text + self._more(index, type(event)))
                ended += isinstance(event, End)
                yield index, event

    def _more(self, index: int, kind: type[Event]) -> str:
        text = ""
        while self._told and not isinstance(told := self._told[0], RefusedError):
            event = told[1]
            if told[0] != index or not isinstance(event, kind):
                break
            assert isinstance(event, Reasoning | Answer)
            self._told.popleft()
            text += event.text
        return text


@dataclass(eq=False)
class PendingAnswer:
    """One answer of a request."""

    request: PendingRequest
    index: int
    sample: Sample
    left: int = 0
    """How many tokens its present row can still bring."""


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
        self._inbox: SimpleQueue[PendingRequest | None] = SimpleQueue()
        self._pending: set[PendingRequest] = set()
        """Every request whose caller is still there; only the event loop changes it."""
        # Only the thread touches these, the state of what it has taken from the inbox:
        self._waiting: deque[PendingAnswer] = deque()
        self._rows: dict[int, PendingAnswer] = {}
        self._stream: Stream | None = None
        """The open stream, whose wait for tokens a new request interrupts."""
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
        return sum(not request.running for request in tuple(self._pending))

    @property
    def healthy(self) -> bool:
        """Whether a request could be answered now."""
        return self._engine is not None and not self._leaving

    async def answer(self, prepare: Prepare) -> AsyncGenerator[tuple[int, Event], None]:
        """Answer one request; close the iterator to stop before the end.

        Returns:
            Events, each with the index of the sample that it belongs to.

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
        pending = PendingRequest(prepare)
        self._pending.add(pending)
        self._inbox.put(pending)
        if stream := self._stream:
            stream.interrupt()
        try:
            async for event in pending.events():
                yield event
        finally:
            pending.abandoned = True
            self._pending.remove(pending)

    async def ask(self, work: Callable[[Engine], Asked]) -> Asked:
        """Have the engine's thread do something short between two tokens; returns its result.

        Raises:
            RefusedError: as :meth:`answer`.
        """
        found: list[Asked] = []

        def prepare(engine: Engine) -> Sequence[Sample]:
            found.append(work(engine))
            return []

        async for _ in self.answer(prepare):
            raise AssertionError("no answer was asked for")
        return found[0]

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
            pending.refuse(SHUTTING_DOWN)

    def _run(self) -> None:
        """Make answers until the scheduler is closed; this is the thread."""
        while not self._closed:
            try:
                self._prepare(self._inbox.get())
                while self._waiting and not self._closed:
                    self._batch(self._loaded())
            except EngineCrashedError as error:
                logging.getLogger(__name__).error(error.sentence)
                self._fail(CRASHED)
                self._reload()
            except UserError as error:
                self._fail(_engine_failed(error))
            except Exception:  # a bug must not leave everybody waiting
                logging.getLogger(__name__).exception("an answer failed")
                self._fail(FAILED)
                self._reload()
        if self._engine:
            self._engine.close()

    def _batch(self, engine: Engine) -> None:
        """Make answers until nobody waits for one."""
        with self._open_stream(engine) as stream:
            self._admit(stream)
            while self._rows:
                for row, piece in stream:
                    if row in self._rows:  # else it was dropped: the engine was a little ahead
                        self._push(row, piece, stream)
                    self._receive()
                    self._admit(stream)
                self._receive()  # what interrupted the stream
                self._admit(stream)

    @contextmanager
    def _open_stream(self, engine: Engine) -> Iterator[Stream]:
        """Open the stream for whoever interrupts it; what came before is taken here."""
        with engine.stream([]) as stream:
            self._stream = stream
            try:
                self._receive()
                yield stream
            finally:
                self._stream = None

    def _push(self, row: int, piece: GeneratedToken, stream: Stream) -> None:
        """Hand a token to its answer."""
        pending = self._rows[row]
        pending.left -= 1
        with self._alone(pending):
            self._tell(pending, pending.sample.push(piece))
            if pending.sample.waiting and not pending.left:
                self._tell(pending, pending.sample.ran_out())
        if pending.request.abandoned or not pending.sample.waiting:
            stream.drop(row)
            del self._rows[row]
            pending.request.running -= 1
            self._continue(pending, stream)

    @contextmanager
    def _alone(self, pending: PendingAnswer) -> Iterator[None]:
        """Let an exception end the request of this answer, and no other."""
        try:
            yield
        except EngineCrashedError:
            raise
        except UserError as error:
            pending.request.refuse(_engine_failed(error))
        except Exception:
            logging.getLogger(__name__).exception("an answer failed")
            pending.request.refuse(FAILED)

    def _receive(self) -> None:
        """Take the requests that came meanwhile."""
        with suppress(Empty):
            while True:
                self._prepare(self._inbox.get_nowait())

    def _prepare(self, request: PendingRequest | None) -> None:
        """Prepare all answers of a request and let them wait for their turn, or refuse it."""
        if request is None:
            self._closed = True
            return
        if request.abandoned:
            return
        try:
            engine = self._loaded()
        except UserError as error:
            request.refuse(_engine_failed(error))
            return
        try:
            samples = request.prepare(engine)
        except EngineCrashedError:
            request.refuse(CRASHED)
            raise
        except UserError as error:
            request.refuse(invalid(for_clients(error)))
        except RefusedError as error:
            request.refuse(error)
        except Exception:  # nothing was asked of the engine yet: the others can go on
            logging.getLogger(__name__).exception("a request could not be prepared")
            request.refuse(FAILED)
        else:
            request.expect(len(samples))
            self._waiting += [PendingAnswer(request, *pair) for pair in enumerate(samples)]

    def _admit(self, stream: Stream) -> None:
        """Begin answers for which there is room, of requests that have the fewest before others."""
        while self._waiting and len(self._rows) < self.parallel:
            pending = min(self._waiting, key=lambda one: one.request.running)
            self._waiting.remove(pending)
            with self._alone(pending):
                self._tell(pending, pending.sample.begin())
            self._continue(pending, stream)

    def _continue(self, pending: PendingAnswer, stream: Stream) -> None:
        """Continue an answer that has not ended, in a new row."""
        if pending.request.abandoned or pending.sample.ended:
            return
        with self._alone(pending):
            request = pending.sample.request()
            pending.left = request.max_tokens
            self._rows[stream.add(request)] = pending
            pending.request.running += 1

    def _tell(self, pending: PendingAnswer, events: Iterable[Event]) -> None:
        said = list(events)
        pending.request.tell(pending.index, said)
        for event in said:
            if isinstance(event, End):
                self._ended(event)

    def _fail(self, error: RefusedError) -> None:
        """Refuse every request that was taken: the engine failed under them."""
        for request in {one.request for one in (*self._rows.values(), *self._waiting)}:
            request.refuse(error)
            request.running = 0
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


def _engine_failed(error: UserError) -> RefusedError:
    """The refusal of a request that the engine cannot answer."""
    return RefusedError(500, "server_error", for_clients(error))
