"""The engine's side of the wire, without a process."""

from __future__ import annotations

from dataclasses import asdict
from io import BytesIO
from queue import Queue

import pytest

from bitquilt.engines import GenerationRequest, Sampling, child
from bitquilt.engines.wire import receive
from tests.talk.book import Book, reciting


def test_what_is_said_in_a_step_goes_out_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it waits for the next step, so does whoever asks next."""
    monkeypatch.setattr(child, "MESSAGE_SECONDS", -1)
    sent = BytesIO()
    service = child._Service(Book(reciting("abc")), Queue(), sent)
    asked = asdict(GenerationRequest(tokens=list(b"x|"), sampling=Sampling(), max_tokens=2))
    service._obey({"do": "stream", "requests": [asked] * 3})
    assert service._generation
    service._run_generation(service._generation)
    sent.seek(0)
    messages = [receive(sent)[0] for _ in range(3)]
    assert [[text for _, _, text in one["said"]] for one in messages] == [["a"] * 3, ["b"] * 3, []]


def test_the_end_of_a_row_goes_out_at_once() -> None:
    """Another row may wait for its place; the others need not come one by one."""
    sent = BytesIO()
    service = child._Service(Book(reciting("abcdef")), Queue(), sent)
    asked = [
        asdict(GenerationRequest(tokens=list(b"x|"), sampling=Sampling(), max_tokens=length))
        for length in (1, 4)
    ]
    service._obey({"do": "stream", "requests": asked})
    assert service._generation
    service._run_generation(service._generation)
    sent.seek(0)
    messages = [receive(sent)[0] for _ in range(3)]
    texts = [[(row, text) for row, _, text in one["said"]] for one in messages]
    assert texts == [[(0, "a"), (1, "a")], [(1, "b"), (1, "c"), (1, "d")], []]


def test_tokens_are_found_by_whoever_listens() -> None:
    """They do not wait for the step that the engine is at; all else is done in turn."""
    sent, orders = BytesIO(), Queue()
    service = child._Service(Book(reciting("abc")), orders, sent)
    service.hear({"do": "tokenize", "text": "hi", "add_special": False})
    service.hear({"do": "drop", "row": 1})
    sent.seek(0)
    assert receive(sent)[0] == {"tokens": list(b"hi")}
    assert orders.get_nowait() == {"do": "drop", "row": 1}
    assert orders.empty()
