"""Answers that the original writes: how many, what they are called, and what is kept of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bitquilt.calibration.corpus import Document
from bitquilt.engines import ModelInfo, Sampling
from bitquilt.engines.torch import TorchEngine
from bitquilt.errors import UserError
from bitquilt.evaluation import original, traces
from bitquilt.evaluation.config import TraceConfig
from bitquilt.evaluation.original import CanonicalOriginal
from bitquilt.evaluation.reference import Talk
from bitquilt.models import open_checkpoint
from bitquilt.runtime.progress import Progress, Silent
from bitquilt.runtime.workdir import WorkDir
from tests.factories import CHAT_TEMPLATE, tiny_checkpoint

QUESTIONS = [f"What is {n} + {n}?" for n in range(5)]
LENGTH = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(tiny_checkpoint(tmp_path_factory.mktemp("traces")))


@pytest.fixture(autouse=True)
def _two_rows(monkeypatch):
    monkeypatch.setattr(traces, "ROWS", 2)


def asked(checkpoint, path: Path, progress: Progress, shown: int = 2) -> Talk:
    with WorkDir(path, {}) as work:
        config = TraceConfig(count=5, shown=shown)
        return Talk.of(CanonicalOriginal(checkpoint), QUESTIONS, config, LENGTH, work, progress)


class Told(Silent):
    """Remembers the stages and the steps in them."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: list[tuple[str, int]] = []
        self.steps: list[int] = []

    def stage(self, title, total, kind=""):
        self.stages.append((title, total))
        return super().stage(title, total, kind)

    def advance(self, steps=1):
        self.steps.append(steps)


@pytest.mark.parametrize("tokens", [1024, 5120, 8192, 16_384, 65_536, 1_000_000])
def test_all_answers_together_are_a_share_of_the_tokens(tokens):
    count, length = TraceConfig().within(tokens)
    assert count * length <= tokens / 8
    assert 8 <= count <= 32
    assert 16 <= length <= 256


def test_eight_thousand_tokens_have_eight_short_answers():
    assert TraceConfig().within(8192) == (8, 128)
    assert TraceConfig().within(65_536) == (32, 256)
    assert TraceConfig(count=3).within(8192) == (3, 128)
    assert TraceConfig(count=0).within(8192)[0] == 0
    with pytest.raises(UserError, match=r"TraceConfig\.count is -1"):
        TraceConfig(count=-1)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (CHAT_TEMPLATE, "traces"),  # asks for a box
        ("{{ messages[0].content }}<think></think>", "traces"),
        ("{{ messages[0].content }}", "answers"),
    ],
)
def test_only_a_model_that_reasons_writes_traces(template, name):
    info = ModelInfo(
        vocabulary=9, context=9, chat_template=template, special_tokens={}, sampling=Sampling()
    )
    assert traces.domain_of(info, "Why?") == name


def test_what_is_written_is_told_by_its_name(checkpoint, tmp_path, monkeypatch):
    told = Told()
    talk = asked(checkpoint, tmp_path / "boxed", told)
    ((title, total),) = told.stages
    assert title == f"{checkpoint.name} writes 7 reasoning traces"
    assert sum(told.steps) == total
    assert len(told.steps) >= 7  # every token, not every answer
    assert set(talk.drawn.domain) == {"traces"}
    monkeypatch.setattr(traces, "domain_of", lambda *_: "answers")
    told = Told()
    assert set(asked(checkpoint, tmp_path / "plain", told).drawn.domain) == {"answers"}
    assert told.stages[0][0] == f"{checkpoint.name} writes 7 answers"


def test_answers_are_those_of_one_row_alone(checkpoint, tmp_path):
    talk = asked(checkpoint, tmp_path / "work", Silent())
    with TorchEngine(checkpoint) as engine:
        for row, question in enumerate(QUESTIONS):
            tokens = traces.prompt_of(engine, question)
            with engine.stream([traces.at_random(tokens, row, LENGTH)]) as stream:
                own = [piece.token for _, piece in stream]
            end = len(tokens) + len(own)
            assert talk.drawn.tokens[row, :end].tolist() == tokens + own
            assert talk.drawn.scored[row].sum() == len(own)
    assert talk.asked == QUESTIONS[:2]


def test_an_answer_is_kept_when_it_is_done(checkpoint, tmp_path, monkeypatch):
    """The third batch fails; what the first two said is not said again."""
    whole = asked(checkpoint, tmp_path / "whole", Silent())
    stream = TorchEngine.stream
    batches = []

    def broken(engine, requests):
        batches.append(len(requests))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return stream(engine, requests)

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "stream", broken)
        with pytest.raises(KeyboardInterrupt):
            asked(checkpoint, tmp_path / "work", Silent())
    assert len(list((tmp_path / "work" / "talk").iterdir())) == 4
    told = Told()
    again = asked(checkpoint, tmp_path / "work", told)
    assert told.stages[0][0].endswith("writes 3 reasoning traces")
    assert torch.equal(again.drawn.tokens, whole.drawn.tokens)
    assert again.answers == whole.answers
    monkeypatch.setattr(original, "TorchEngine", None)
    assert asked(checkpoint, tmp_path / "work", Silent()).answers == whole.answers


def test_questions_are_what_conversations_begin_with():
    """A later question needs what was said before it, and so does one after a system message."""

    def conversation(*said: tuple[str, str]) -> Document:
        messages = tuple({"role": role, "content": content} for role, content in said)
        return Document("chat", "s", None, messages)

    documents = [
        conversation(
            ("user", "One?"), ("assistant", "1"), ("user", "And then?"), ("assistant", "2")
        ),
        conversation(("system", "You have tools."), ("user", "Two?"), ("assistant", "{}")),
        Document("prose", "s", "Three?", None),
        *(conversation(("user", f"{n}?"), ("assistant", "yes")) for n in range(4, 10)),
    ]
    assert traces.questions(documents, 9) == ["One?", "4?", "5?", "6?", "7?", "8?", "9?"]
    assert traces.questions(documents, 3) == ["One?", "5?", "7?"]
