"""Files of random numbers have a model's shapes, and the middle answer is the file's time."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from bitquilt import qtypes
from bitquilt.allocation import timing
from bitquilt.allocation.timing import TimingSchedule, random_weights, token_seconds
from bitquilt.engines import GeneratedToken
from tests.clock import set_clock
from tests.shapes import shaped_checkpoint


@pytest.mark.parametrize("qtype", ["Q4_K", "Q8_0", "4bit-g64", "BF16"])
def test_random_weights_have_the_models_shapes(qtype):
    checkpoint = shaped_checkpoint()
    packed = random_weights(checkpoint)
    for module, shape in checkpoint.matrices.items():
        assert qtypes.get(qtype).dequantize(packed(module, qtype)).shape == shape


class Clockwork:
    """An engine whose answers take the seconds that a list says, one entry an answer."""

    info = SimpleNamespace(vocabulary=100)

    def __init__(self, monkeypatch, seconds):
        self.now, self.asked, self._seconds = 0.0, [], list(seconds)
        monkeypatch.setattr(timing, "open_engine", self._open)
        set_clock(monkeypatch, timing, lambda: self.now)

    @contextmanager
    def _open(self, path):
        yield self

    @contextmanager
    def stream(self, requests):
        (request,) = requests
        self.asked.append(request)
        self.now += self._seconds[len(self.asked) - 1]
        yield [(0, GeneratedToken(n, "")) for n in range(request.max_tokens)]


def test_the_middle_answer_counts_and_the_first_does_not(monkeypatch):
    engine = Clockwork(monkeypatch, [99.0, 4.0, 2.0, 50.0])
    schedule = TimingSchedule(answer_tokens=2, least_answers=4, answer_seconds=0.0)
    assert token_seconds("file", schedule) == 2.0
    assert len(engine.asked) == 4
    assert len({tuple(request.tokens) for request in engine.asked}) == 1


def test_there_are_as_many_answers_as_there_is_time_for(monkeypatch):
    engine = Clockwork(monkeypatch, [0.3] * 20)
    schedule = TimingSchedule(most_answers=9, least_answers=2, answer_seconds=1.0)
    token_seconds("file", schedule)
    assert len(engine.asked) == 5
    short = Clockwork(monkeypatch, [0.001] * 20)
    token_seconds("file", schedule)
    assert len(short.asked) == 9
