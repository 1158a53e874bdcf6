"""Who waits for whom, with an engine that is at a long step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from bitquilt.engines import GeneratedToken, GenerationRequest
from bitquilt.engines.generation import Generation
from tests.serve.agents import TEMPLATE, agent
from tests.serve.conftest import post, running
from tests.talk.book import Book

BODY = b'{"messages": [{"role": "user", "content": "hi"}]}'


class LongStep(Generation):
    """Says nothing before it may; whoever waits for it can be interrupted."""

    may = Event()
    interrupted = Event()

    def __iter__(self) -> Iterator[tuple[int, GeneratedToken]]:
        while not self.may.wait(0.001):
            if self.interrupted.is_set():
                self.interrupted.clear()
                return
        yield from super().__iter__()

    def interrupt(self) -> None:
        self.interrupted.set()


class LongBook(Book):
    def stream(self, requests: Sequence[GenerationRequest]) -> Generation:
        return LongStep(self, requests)


def test_a_question_joins_while_the_others_wait_for_a_step() -> None:
    with (
        running(lambda: LongBook(agent, TEMPLATE), parallel=2) as server,
        ThreadPoolExecutor(2) as clients,
    ):
        first = clients.submit(post, server, BODY)
        assert server.within(20, lambda: server.scheduler.running == 1)
        second = clients.submit(post, server, BODY)
        assert server.within(20, lambda: server.scheduler.running == 2)
        assert not first.done()
        LongStep.may.set()
        assert first.result()[0] == second.result()[0] == 200
