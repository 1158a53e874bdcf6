"""Problems answered several times: how often right, how sure that is, and what goes wrong.

The model is asked as users ask it, in its own template; where neither that nor the problem says so,
it is asked to box its answer. Nothing rescues it from a loop, which counts as a wrong answer.

Letters: I items, R repeats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bitquilt.engines import Engine, GenerationRequest, Sampling
from bitquilt.metrics.intervals import LEVEL, Documents, student
from bitquilt.metrics.kl import Estimate
from bitquilt.runtime.progress import Progress
from bitquilt.talk.loop_detector import LoopDetector
from bitquilt.talk.prompt import SYSTEM_PROMPTS, compose
from bitquilt.talk.reasoning import boxed
from bitquilt.talk.votes import normalized
from bitquilt.tasks.task_data import Problem

BATCH = 32
Z = 1.959964
"""Of a 95 % interval."""
Z_POWER = 0.841621
"""Of a power of 80 %: four times in five a real difference is to be seen."""


@dataclass(frozen=True)
class Answers:
    """What a model said to I items, R times; every array is [I, R]."""

    right: NDArray[np.bool_]
    final: NDArray[np.str_]
    """The boxed answer, normalized; empty where there is none."""
    tokens: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    """Not at an end after the most tokens allowed."""
    looping: NDArray[np.bool_]

    @classmethod
    def of(
        cls, said: Sequence[Said], final: Sequence[str], right: Sequence[bool], repeats: int
    ) -> Answers:
        """From answers in the order of :func:`converse`, what each comes to, and whether right."""
        shape = (-1, repeats)
        return cls(
            np.array(right).reshape(shape),
            np.array(final).reshape(shape),
            np.array([one.tokens for one in said]).reshape(shape),
            np.array([not one.ended and not one.looping for one in said]).reshape(shape),
            np.array([one.looping for one in said]).reshape(shape),
        )


@dataclass(frozen=True)
class Score:
    """A model on a task."""

    task: str
    items: int
    repeats: int
    pass_at_1: Estimate
    """Share of right answers, over items and runs."""
    majority: Estimate
    """Share of items whose most frequent answer is right."""
    tokens: Estimate
    """Of an answer."""
    truncated: float
    looping: float
    unboxed: float
    smallest: float
    """The difference between two models, measured like this one and apart, that would be seen
    four times in five."""


@dataclass(frozen=True)
class Versus:
    """Two models on the same items."""

    difference: Estimate
    """Pass@1 of the second less that of the first, item by item."""
    wanted: float
    """A difference worth seeing."""
    repeats: int | None
    """What it takes to see it, four times in five; None where only more items would help."""
    items: int
    """As many items as it would take at the repeats that were made."""


@dataclass(frozen=True)
class Manner:
    """How a model is to answer."""

    repeats: int
    """R."""
    max_tokens: int
    """Of an answer."""
    sampling: Sampling
    """Of all models alike, or the difference between two would be that of their settings too."""


def ask(engine: Engine, problems: Sequence[Problem], manner: Manner, progress: Progress) -> Answers:
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
) -> list[Said]:
    """Answers to every question in turn, each so many times with seeds of its own."""
    prompts = [
        compose(engine, [{"role": "user", "content": question}]).tokens for question in questions
    ]
    requests = [
        GenerationRequest(
            prompt,
            replace(manner.sampling, seed=seed),
            _room(engine, prompt, manner.max_tokens),
        )
        for prompt in prompts
        for seed in range(manner.repeats)
    ]
    said: list[Said] = []
    for start in range(0, len(requests), BATCH):
        said += _batch(engine, requests[start : start + BATCH], progress)
    return said


def _room(engine: Engine, prompt: Sequence[int], max_tokens: int) -> int:
    return max(1, min(max_tokens, engine.info.context - len(prompt)))


@dataclass
class Said:
    """An answer, maybe in the making."""

    text: str = ""
    tokens: int = 0
    ended: bool = False
    looping: bool = False


def _batch(engine: Engine, requests: Sequence[GenerationRequest], progress: Progress) -> list[Said]:
    said = [Said() for _ in requests]
    guards = [LoopDetector() for _ in requests]
    with engine.stream(requests) as stream:
        for row, piece in stream:
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


def score(task: str, answers: Answers) -> Score:
    """Figures of a task, each with its interval over items."""
    items, repeats = answers.right.shape
    # two items always right and two never (Agresti & Coull), or all wrong would look certain
    surely = np.repeat([[1.0], [1.0], [0.0], [0.0]], repeats, axis=1)
    between, within = _variances(np.vstack([answers.right, surely]))
    error = math.sqrt(2 * (between + within / repeats) / items)
    return Score(
        task,
        items,
        repeats,
        share(answers.right),
        share(_majority(answers)[:, None]),
        _over_items(answers.tokens.astype(float)),
        float(answers.truncated.mean()),
        float(answers.looping.mean()),
        float((answers.final == "").mean()),
        (Z + Z_POWER) * error,
    )


def compare(first: Answers, second: Answers, wanted: float = 0.02) -> Versus:
    """Two models on the same items, paired; and what it takes to see a difference of ``wanted``."""
    items, repeats = first.right.shape
    difference = second.right.mean(1) - first.right.mean(1)
    both = (_variances(answers.right.astype(float))[1] for answers in (first, second))
    within = sum(both)
    spread = float(np.append(difference, [1.0, -1.0]).var(ddof=1))  # as above (Bonett & Price)
    between = max(0.0, spread - within / repeats)
    allowed = (wanted / (Z + Z_POWER)) ** 2  # squared standard error that shows it
    left = items * allowed - between
    needed = max(1, math.ceil(within / left)) if left > 0 else None
    enough = math.ceil((between + within / repeats) / allowed)
    return Versus(ahead(difference), wanted, needed, enough)


def ahead(difference: NDArray[np.floating]) -> Estimate:
    """A mean difference over items [I] between −1 and 1, with its interval.

    One item better and one worse are added (Bonett & Price 2012): models that agree on a few items
    are not surely equal.
    """
    more = np.append(difference, [1.0, -1.0])
    half = student(LEVEL, len(more) - 1) * more.std(ddof=1) / math.sqrt(len(more))
    middle = float(more.mean())
    return Estimate(float(difference.mean()), max(-1.0, middle - half), min(1.0, middle + half))


def share(hits: NDArray[np.bool_]) -> Estimate:
    """A share of [I, R] with its interval over items: Wilson's, for as many independent answers
    as the spread over items amounts to, so that all right is not beyond doubt.
    """
    items, _ = hits.shape
    mean, spread = float(hits.mean()), float(hits.mean(1).var(ddof=1)) if items > 1 else 0.0
    count = mean * (1 - mean) * items / spread if spread > 0 else items
    middle = (mean + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * math.sqrt(mean * (1 - mean) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    return Estimate(mean, max(0.0, middle - half), min(1.0, middle + half))


def _over_items(values: NDArray[np.floating]) -> Estimate:
    """A mean of [I, R] and its interval over items."""
    items, repeats = values.shape
    owner = np.repeat(np.arange(items), repeats)
    return Documents.of(owner, np.zeros_like(owner)).mean(values.ravel())


def _majority(answers: Answers) -> NDArray[np.bool_]:
    """Whether the most frequent answer of an item is right [I]; of even ones the earlier counts."""
    hits = []
    for finals, right in zip(answers.final, answers.right, strict=True):
        given = finals[finals != ""]
        votes = {answer: int((given == answer).sum()) for answer in given}
        first = max(votes, key=lambda answer: votes[answer], default=None)
        hits.append(first is not None and bool(right[finals == first][0]))
    return np.array(hits)


def _variances(values: NDArray[np.floating]) -> tuple[float, float]:
    """Of [I, R]: between items, and within an item from run to run."""
    items, repeats = values.shape
    if repeats == 1:  # of one run, what chance does within an item is p (1 − p) at most
        within = float(values.mean() * (1 - values.mean()))
        return 0.0, within
    within = float(values.var(1, ddof=1).mean())
    between = float(values.mean(1).var(ddof=1)) if items > 1 else 0.0
    return max(0.0, between - within / repeats), within
