"""Problems with one right answer, put to a model several times; :mod:`.scores` counts.

The model is asked as users ask it, in its own template; where neither that nor the problem says so,
it is asked to box its answer. Nothing rescues it from a loop, which counts as a wrong answer.

Letters: I items, R repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bitquilt.engines import Engine, GenerationRequest, Sampling, spoken
from bitquilt.runtime.progress import Progress
from bitquilt.talk.loop_detector import LoopDetector
from bitquilt.talk.prompt import SYSTEM_PROMPTS, compose
from bitquilt.talk.reasoning import boxed
from bitquilt.talk.votes import normalized
from bitquilt.tasks.task_data import Problem

ANSWERS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model said to I items, R times; every array is [I, R]."""

    right: NDArray[np.bool_]
    """Whether the answer is right."""
    final: NDArray[np.str_]
    """The boxed answer, normalized; empty where there is none."""
    tokens: NDArray[np.int64]
    """The length of the answer."""
    truncated: NDArray[np.bool_]
    """Whether the answer was cut after the most tokens that were allowed."""
    looping: NDArray[np.bool_]
    """Whether the answer went round in circles."""

    @classmethod
    def of(
        cls, said: Sequence[Reply], final: Sequence[str], right: Sequence[bool], repeats: int
    ) -> Answers:
        """From answers in the order of :func:`converse`, what each comes to, and whether right."""
        shape = (-1, repeats)
        cut = [not one.ended and not one.looping for one in said]
        return cls(
            right=np.array(right).reshape(shape),
            final=np.array(final).reshape(shape),
            tokens=np.array([one.tokens for one in said]).reshape(shape),
            truncated=np.array(cut).reshape(shape),
            looping=np.array([one.looping for one in said]).reshape(shape),
        )


@dataclass(frozen=True)
class Manner:
    """How a model is to answer."""

    repeats: int
    """R: each problem is asked this many times, with seeds from 0 on."""
    max_tokens: int
    """An answer is cut after this many tokens."""
    sampling: Sampling
    """All models are sampled alike, or a difference between two would be one of settings too."""


def ask_problems(
    engine: Engine, problems: Sequence[Problem], manner: Manner, progress: Progress
) -> Answers:
    """Put every problem to a model several times, in batches.

    Args:
        engine: the model.
        problems: I items.
        manner: of the answers.
        progress: advances after each of I · R answers.
    """
    repeats = manner.repeats
    said = converse(engine, [_boxing(engine, p.question) for p in problems], manner, progress)
    final = [normalized(boxed(one.text) or "") for one in said]
    expected = [normalized(problem.answer) for problem in problems for _ in range(repeats)]
    right = [
        own == truth != "" and not one.looping
        for own, truth, one in zip(final, expected, said, strict=True)
    ]
    return Answers.of(said, final, right, repeats)


def _boxing(engine: Engine, question: str) -> str:
    """A question that says where the answer goes, unless the model's template does."""
    if "\\boxed" in question or "\\boxed" in (engine.info.chat_template or ""):
        return question
    return f"{question}\n\n{SYSTEM_PROMPTS['boxed']}"


def converse(
    engine: Engine, questions: Sequence[str], manner: Manner, progress: Progress
) -> list[Reply]:
    """Give answers to every question in turn, each so many times with seeds of its own."""
    prompts = [
        compose(engine, [{"role": "user", "content": question}]).tokens for question in questions
    ]
    requests = [
        GenerationRequest(
            tokens=prompt,
            sampling=replace(manner.sampling, seed=seed),
            max_tokens=_room(engine, prompt, manner.max_tokens),
        )
        for prompt in prompts
        for seed in range(manner.repeats)
    ]
    said: list[Reply] = []
    for start in range(0, len(requests), ANSWERS_AT_ONCE):
        said += _batch(engine, requests[start : start + ANSWERS_AT_ONCE], progress)
    return said


def _room(engine: Engine, prompt: Sequence[int], max_tokens: int) -> int:
    return max(1, min(max_tokens, engine.info.context - len(prompt)))


@dataclass
class Reply:
    """An answer, maybe in the making."""

    text: str = ""
    tokens: int = 0
    ended: bool = False
    looping: bool = False


def _batch(
    engine: Engine, requests: Sequence[GenerationRequest], progress: Progress
) -> list[Reply]:
    said = [Reply() for _ in requests]
    guards = [LoopDetector() for _ in requests]
    with engine.stream(requests) as stream:
        for row, piece in spoken(engine.info, stream):
            one = said[row]
            if one.looping:
                continue  # the engine was a little ahead
            one.text += "" if piece.control else piece.text
            one.tokens += 1
            one.ended = piece.ends
            one.looping = not piece.ends and guards[row].push(piece.token, piece.text) is not None
            if one.looping:
                stream.drop(row)
            if one.looping or one.ended or one.tokens == requests[row].max_tokens:
                progress.advance()
    return said
