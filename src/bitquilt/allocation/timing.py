"""The time that a model file takes in its engine, and files of random numbers to be timed."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import torch

from bitquilt import qtypes
from bitquilt.engines import Engine, GenerationRequest, Sampling, open_engine, spoken
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Packed, PackedSource
from bitquilt.rounding.nearest import fit

PATTERN_ROWS = 64
"""Different rows of a random matrix; they repeat."""


@dataclass(frozen=True, kw_only=True)
class TimingSchedule:
    """How much is timed, and how often."""

    prompt_tokens: int = 128
    """Tokens before an answer."""
    answer_tokens: int = 32
    """Tokens of an answer; of many short ones the middle one is little disturbed."""
    most_answers: int = 16
    """Answers of a file where there is time for so many."""
    least_answers: int = 4
    """Answers of a file however long they take."""
    answer_seconds: float = 1.0
    """Seconds after which a file gives no more answers than it has to."""
    repeats: int = 2
    """How often each file is run, all others in between: other work seldom meets it twice."""
    rounds: int = 2
    """How many files there are for every type of the shape that has the most types."""
    most_error: float = 0.1
    """Timings that predict each other with a larger error are not kept for the next time."""
    most_weights: int = 400_000_000
    """Larger models are timed with fewer blocks; this is more than a processor's cache holds."""


def random_weights(checkpoint: Checkpoint) -> PackedSource:
    """Return a source of matrices of a model's shapes on any type, with random numbers."""

    def packed(module: str, qtype: str) -> Packed:
        rows, columns = checkpoint.matrices[module]
        return {
            name: part.repeat(-(-rows // len(part)), 1)[:rows]
            for name, part in _pattern(columns, qtype).items()
        }

    return packed


@cache
def _pattern(columns: int, qtype: str) -> Packed:
    """Make rows with numbers of the usual size."""
    weights = torch.randn(PATTERN_ROWS, columns, generator=torch.Generator().manual_seed(0))
    return qtypes.get(qtype).pack(fit(qtypes.get(qtype), weights * columns**-0.5, None))


def token_seconds(path: Path, schedule: TimingSchedule | None = None) -> float:
    """Time a file: return the seconds for one more token, the median of several answers' means."""
    schedule = schedule or TimingSchedule()
    with open_engine(path) as engine:
        rng = random.Random(0)
        prompt = [rng.randrange(engine.info.vocabulary) for _ in range(schedule.prompt_tokens)]
        tokens = schedule.answer_tokens
        answers, started = [_answer(engine, prompt, tokens, 0)], time.monotonic()
        while len(answers) < schedule.most_answers and (
            len(answers) < schedule.least_answers
            or time.monotonic() - started < schedule.answer_seconds
        ):
            answers.append(_answer(engine, prompt, tokens, len(answers)))
    return median(answers[1:])


def _answer(engine: Engine, prompt: Sequence[int], tokens: int, seed: int) -> float:
    """Seconds per token of one answer; once the engine keeps the prompt, all steps are alike."""
    started = time.perf_counter()
    sampling = Sampling(temperature=1.0, top_k=40, seed=seed)
    with engine.stream(
        [GenerationRequest(tokens=prompt, sampling=sampling, max_tokens=tokens)]
    ) as stream:
        count = sum(1 for _ in spoken(engine.info, stream))
    return (time.perf_counter() - started) / count
