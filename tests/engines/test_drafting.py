"""Drafts: the answer is the one without them, and what is not kept leaves no trace."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitquilt import demo
from bitquilt.engines import Engine, GeneratedToken, GenerationRequest, Sampling, open_engine
from bitquilt.engines.backend import Logits
from bitquilt.engines.drafting import (
    DRAFT_TOKENS,
    RETRY_STEPS,
    TIMED_STEPS,
    Drafter,
    Pace,
    Verifier,
)
from bitquilt.engines.engine import ModelInfo
from bitquilt.engines.generation import Generation
from bitquilt.engines.llamacpp_backend import LlamaCppBackend
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.talk.grammar import json_grammar
from bitquilt.talk.prompt import compose
from bitquilt.targets import GGUF, MLX
from tests.cli.conftest import demo_gguf
from tests.factories import tiny_checkpoint
from tests.quick import invoke
from tests.targets.conftest import Model

__all__ = ["demo_gguf"]

V = 12
END = 0


class Oracle:
    """A model whose logits are drawn by a seed and the last three tokens of a row."""

    def __init__(self, noise: float, vocabulary: int = V) -> None:
        self.info = ModelInfo(
            vocabulary=vocabulary,
            context=1000,
            chat_template=None,
            special_tokens={},
            sampling=Sampling(),
            name=f"oracle-{noise}",
        )
        self.noise, self.rows, self.retracts = noise, [], True
        self.read_at_once, self.at_once = 0, 27
        self.texts: dict[int, str | None] = {}

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        return "".join(map(chr, (97 + token for token in tokens)))

    def control_text(self, token: int) -> str | None:
        return None

    def ends_turn(self, token: int) -> bool:
        return token == END

    def ordinary_text(self, token: int) -> str | None:
        return self.texts.get(token, chr(97 + token))

    def _after(self, row: Sequence[int]) -> Logits:
        truth = np.random.default_rng([1, *row[-3:]]).normal(size=V + 3)
        error = np.random.default_rng([2, *row[-3:]]).normal(size=V + 3)
        return (6 * truth + self.noise * error)[: self.info.vocabulary].astype(np.float32)

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[Logits, int]:
        assert all(0 <= token < self.info.vocabulary for prompt in prompts for token in prompt)
        self.rows = [list(prompt) for prompt in prompts]
        return np.stack([self._after(row) for row in self.rows]), len(prompts)

    def step(self, tokens: Sequence[int]) -> Logits:
        return np.concatenate(self.verify([[token] for token in tokens]))

    def verify(self, tokens: Sequence[Sequence[int]]) -> list[Logits]:
        self.read_at_once = max(self.read_at_once, *map(len, tokens))
        found = []
        for row, read in zip(self.rows, tokens, strict=True):
            row += read
            ends = range(len(row) - len(read) + 1, len(row) + 1)
            found.append(np.stack([self._after(row[:end]) for end in ends]))
        return found

    def retract(self, counts: Sequence[int]) -> None:
        for row, count in zip(self.rows, counts, strict=True):
            del row[len(row) - count :]

    def retain(self, rows: Sequence[int]) -> None:
        self.rows = [self.rows[row] for row in rows]


ENDLESS = GenerationRequest(
    tokens=[3, 1], sampling=Sampling(), max_tokens=200, logit_bias=[(END, -99)]
)


def said(
    requests: Sequence[GenerationRequest], drafter: Drafter | None
) -> dict[int, list[GeneratedToken]]:
    pieces: dict[int, list[GeneratedToken]] = {}
    large = Oracle(0) if drafter is None else drafter.large
    for row, piece in Generation(large, requests, drafter):
        pieces.setdefault(row, []).append(piece)
    return pieces


@given(
    noise=st.sampled_from([0.0, 2.0, 6.0]),
    rows=st.integers(1, 4),
    limit=st.integers(1, 60),
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.7, 2.0]),
        top_p=st.sampled_from([0.8, 1.0]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        presence_penalty=st.sampled_from([0.0, 0.5]),
        seed=st.integers(0, 1000),
    ),
)
@settings(max_examples=60, deadline=None)
def test_an_answer_is_the_one_without_a_draft(
    noise: float, rows: int, limit: int, sampling: Sampling
) -> None:
    requests = [
        GenerationRequest(
            tokens=[3, row], sampling=sampling, max_tokens=limit + row, avoid=[5, 6], scores=1
        )
        for row in range(1, rows + 1)
    ]
    drafted = said(requests, drafting(Oracle(0), Oracle(noise)))
    plain = said(requests, None)
    assert {
        row: [replace(piece, drafted=False) for piece in pieces] for row, pieces in drafted.items()
    } == plain
    assert not any(piece.drafted for pieces in plain.values() for piece in pieces)


def test_a_perfect_draft_is_kept_and_one_more_token_said() -> None:
    drafter = drafting(Oracle(0), Oracle(0))
    (pieces,) = said([ENDLESS], drafter).values()
    assert sum(piece.drafted for piece in pieces) > len(pieces) / 2
    assert isinstance(drafter.large, Oracle)
    assert 1 < drafter.large.read_at_once <= DRAFT_TOKENS + 1
    assert drafter.large.rows == [[3, 1, *(piece.token for piece in pieces[:-1])]]


def test_more_rows_than_a_batch_has_room_for_get_no_drafts() -> None:
    for rows in (3, 4):
        pieces = said([ENDLESS] * rows, drafting(Oracle(0), Oracle(0)))
        assert any(piece.drafted for row in pieces.values() for piece in row) == (rows == 3)


def drafting(large: Verifier, small: Verifier) -> Drafter:
    """One for which no step takes any time."""
    return Drafter(large, small, clock=lambda: 0.0)


@pytest.mark.parametrize(("plain", "drafted", "better"), [(1.0, 2.9, True), (1.0, 3.1, False)])
def test_the_kind_of_step_that_gives_more_tokens_a_second_is_kept(
    plain: float, drafted: float, better: bool
) -> None:
    now = 0.0
    pace = Pace(lambda: now)
    kinds = []
    for _ in range(RETRY_STEPS - 1):
        with pace.step(possible=True) as step:
            now += drafted if step.drafted else plain
            step.tokens = 3 if step.drafted else 1
        kinds.append(step.drafted)
    assert kinds[: TIMED_STEPS + 1] == [False] * (TIMED_STEPS + 1)  # the first tells nothing
    assert kinds[TIMED_STEPS + 1 : 2 * TIMED_STEPS + 2] == [True] * (TIMED_STEPS + 1)
    assert set(kinds[2 * TIMED_STEPS + 2 :]) == {better}
    with pace.step(possible=True) as step:
        step.tokens = 1
    assert pace.drafting != better  # it is time to try the other kind again
    with pace.step(possible=False) as step:
        assert not step.drafted


def test_a_row_with_tokens_that_the_small_model_does_not_know_gets_none() -> None:
    large, small = Oracle(0, V + 3), Oracle(0)
    biased = [(token, -99.0) for token in (END, V, V + 1, V + 2)]
    known = replace(ENDLESS, logit_bias=biased)
    pieces = said([replace(known, tokens=[3, V + 1]), known], drafting(large, small))
    assert [any(piece.drafted for piece in pieces[row]) for row in (0, 1)] == [False, True]


def test_models_that_cannot_draft_are_refused() -> None:
    large, small = Oracle(0), Oracle(1)
    small.texts = {4: None, 5: "z"}  # a control token may be called otherwise
    with pytest.raises(UserError, match=r"oracle-1 cannot draft for oracle-0: token 5 is 'z' in"):
        Drafter(large, small)
    small.texts = {4: None}
    Drafter(large, small)
    small.retracts = False
    with pytest.raises(UserError, match=r"oracle-1 is recurrent, so it cannot take tokens"):
        Drafter(large, small)


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model on Q2_K: nine tenths of its next tokens are those of Q8_0."""
    path = tmp_path_factory.mktemp("small") / "demo-Q2_K.gguf"
    model = Model(demo.path(), open_checkpoint("demo"))
    GGUF.write(model.checkpoint, model.on("Q2_K"), model.packed, path, "{}")
    return path


@pytest.fixture(scope="module")
def alone(demo_gguf: Path) -> Iterator[Engine]:
    with open_engine(demo_gguf) as engine:
        yield engine


@pytest.fixture(scope="module")
def drafter(demo_gguf: Path, small_gguf: Path) -> Drafter:
    """In this process, with a clock by which drafts never cost anything."""
    large, small = (
        LlamaCppBackend(str(path), exact=False, threads=1) for path in (demo_gguf, small_gguf)
    )
    return drafting(large, small)


GREEDY = Sampling()
SCHEMA = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"sampling": Sampling(temperature=0.8, top_p=0.95, seed=11)},
        {"sampling": Sampling(repetition_penalty=1.2, frequency_penalty=0.1)},
        {"grammar": json_grammar(SCHEMA)},
    ],
    ids=["greedy", "sampled", "penalties", "schema"],
)
def test_llama_cpp_says_the_same_with_a_draft(
    alone: Engine, drafter: Drafter, change: dict[str, Any]
) -> None:
    for text in ("What is 347 + 585?", "A train takes 3 hours for 240 km. How fast is it?"):
        prompt = compose(alone, [{"role": "user", "content": text}])
        request = GenerationRequest(tokens=prompt.tokens, sampling=GREEDY, max_tokens=60)
        request = replace(request, **change)
        with alone.stream([request]) as stream:
            plain = [piece for _, piece in stream]
        (drafted,) = said([request], drafter).values()
        assert [replace(piece, drafted=False, prompt=()) for piece in drafted] == plain
        assert "grammar" in change or any(piece.drafted for piece in drafted)


def test_what_was_taken_back_is_not_in_the_next_answer(alone: Engine, drafter: Drafter) -> None:
    start = compose(alone, [{"role": "user", "content": "What is 12 + 30?"}]).tokens
    request = GenerationRequest(tokens=start, sampling=GREEDY, max_tokens=40)
    (first,) = said([request], drafter).values()
    other = [*start, *(piece.token for piece in first[:-3]), *alone.tokenize(" So")]
    request = replace(request, tokens=other)
    (second,) = said([request], drafter).values()
    with alone.stream([request]) as stream:
        assert [piece.token for _, piece in stream] == [piece.token for piece in second]


def test_the_command_line_takes_one(
    capfd: pytest.CaptureFixture[str], demo_gguf: Path, small_gguf: Path
) -> None:
    asked_with_and_without(capfd, demo_gguf, small_gguf)


def asked_with_and_without(capfd: pytest.CaptureFixture[str], large: Path, small: Path) -> None:
    """Ask a model with another as its draft, and alone: the answers are the same."""
    asked = ("run", large, "What is 347 + 585?", "--temperature", "0", "--json")
    answers = []
    for more in ((), ("--draft", small)):
        assert invoke(*asked, *more) == 0
        answers.append(json.loads(capfd.readouterr().out))
    assert answers[0]["answer"] == answers[1]["answer"]
    assert answers[0]["drafted_tokens"] == 0 < answers[1]["drafted_tokens"]


def test_drafts_that_cannot_be_are_one_sentence(
    capfd: pytest.CaptureFixture[str], demo_gguf: Path, small_gguf: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    model = Model(
        source := tiny_checkpoint(tmp_path / "other", "llama", layers=1), open_checkpoint(source)
    )
    GGUF.write(model.checkpoint, model.on("Q8_0"), model.packed, other, "{}")
    mlx = tmp_path / "mlx"
    MLX.write(model.checkpoint, model.on("8bit-g64"), model.packed, mlx, "{}")
    capfd.readouterr()
    for large, small, sentence in (
        (demo_gguf, other, f"{other} cannot draft for {demo_gguf}: token "),
        (small_gguf, demo_gguf, "only a smaller draft model makes answers faster"),
        (demo_gguf, tmp_path, f"{tmp_path} is neither a GGUF file nor an MLX directory"),
        (demo_gguf, tmp_path / "no.gguf", "no.gguf does not exist"),
        ("demo", small_gguf, "demo runs in PyTorch, where no model drafts for another"),
        (demo_gguf, mlx, f"{mlx} cannot be the draft model of {demo_gguf}, as it is not a GGUF"),
        (mlx, small_gguf, f"{small_gguf} cannot be the draft model of {mlx}, as it is not an MLX"),
        ("no.gguf", small_gguf, "no.gguf does not exist"),
    ):
        assert invoke("run", large, "Hi", "--draft", small) == 2
        said = capfd.readouterr()
        assert sentence in said.err
        assert said.err.count("\n") == 1


needs_mlx = pytest.mark.skipif(
    importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed"
)


@pytest.fixture(scope="module")
def mlx_demos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo model as MLX directories of 8 and of 3 bits."""
    model = Model(demo.path(), open_checkpoint("demo"))
    large, small = (tmp_path_factory.mktemp("mlx") / f"demo-{bits}" for bits in (8, 3))
    for path, qtype in ((large, "8bit-g64"), (small, "3bit-g64")):
        MLX.write(model.checkpoint, model.on(qtype), model.packed, path, "{}")
    return large, small


@pytest.fixture(scope="module")
def mlx_drafter(mlx_demos: tuple[Path, Path]) -> Drafter:
    """In this process, with a clock by which drafts never cost anything."""
    from bitquilt.engines.mlx_backend import MlxBackend

    return drafting(*(MlxBackend(str(path)) for path in mlx_demos))


@needs_mlx
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"sampling": Sampling(temperature=0.8, repetition_penalty=1.2, seed=11)},
        {"grammar": json_grammar(SCHEMA)},
    ],
    ids=["greedy", "sampled", "schema"],
)
def test_mlx_lm_says_the_same_with_a_draft(
    alone: Engine, mlx_drafter: Drafter, change: dict[str, Any]
) -> None:
    for text in ("What is 347 + 585?", "A train takes 3 hours for 240 km. How fast is it?"):
        prompt = compose(alone, [{"role": "user", "content": text}])
        request = GenerationRequest(tokens=prompt.tokens, sampling=GREEDY, max_tokens=60)
        request = replace(request, **change)
        plain = [piece for _, piece in Generation(mlx_drafter.large, [request])]
        (drafted,) = said([request], mlx_drafter).values()
        assert [replace(piece, drafted=False) for piece in drafted] == plain
        assert "grammar" in change or any(piece.drafted for piece in drafted)


@needs_mlx
def test_several_rows_of_mlx_lm_get_no_drafts(alone: Engine, mlx_drafter: Drafter) -> None:
    start = compose(alone, [{"role": "user", "content": "What is 12 + 30?"}]).tokens
    request = GenerationRequest(tokens=start, sampling=GREEDY, max_tokens=30)
    both = said([request, request], mlx_drafter)
    assert not any(piece.drafted for pieces in both.values() for piece in pieces)


@needs_mlx
def test_a_full_window_of_mlx_lm_ends_the_drafts_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that has begun to overwrite what it holds cannot give anything back."""
    from bitquilt.engines.mlx_backend import MlxBackend

    monkeypatch.setattr("bitquilt.engines.drafting.LEAST_SURE", 0.0)  # random weights never are
    window, path = 64, tmp_path / "gemma"
    model = Model(
        source := tiny_checkpoint(tmp_path, "gemma3_text", layers=6), open_checkpoint(source)
    )
    MLX.write(model.checkpoint, model.on("8bit-g64"), model.packed, path, "{}")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"sliding_window": window}))
    large, small = MlxBackend(str(path)), MlxBackend(str(path))
    request = replace(
        ENDLESS,
        sampling=Sampling(temperature=1.0, seed=5),
        logit_bias=[(token, -99.0) for token in large._ends],
        scores=0,
    )
    plain = [piece for _, piece in Generation(large, [request])]
    (drafted,) = said([request], drafting(large, small)).values()
    assert [piece.token for piece in drafted] == [piece.token for piece in plain]
    for piece, other in zip(drafted, plain, strict=True):
        assert piece.score is not None
        assert other.score is not None
        assert piece.score.logprob == pytest.approx(other.score.logprob, abs=1e-3)
    places = [place for place, piece in enumerate(drafted) if piece.drafted]
    assert len(places) > 4
    assert places[-1] < window


@needs_mlx
def test_the_command_line_takes_mlx_directories(
    capfd: pytest.CaptureFixture[str], mlx_demos: tuple[Path, Path]
) -> None:
    asked_with_and_without(capfd, *mlx_demos)
