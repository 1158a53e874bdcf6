"""What answers come to: how often right, how sure that is, and what it takes to know more.

Letters: I items, R repeats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitquilt.metrics.intervals import LEVEL, Documents, student, wilson
from bitquilt.metrics.kl import Estimate
from bitquilt.tasks.problems import Answers

Z_95 = 1.959964
"""The normal quantile of a 95 % interval."""
Z_POWER = 0.841621
"""The normal quantile of a power of 80 %: a real difference is seen four times in five."""


@dataclass(frozen=True, kw_only=True)
class ProblemScore:
    """A model on a task."""

    task: str
    """The task's name."""
    items: int
    """The number of problems."""
    repeats: int
    """The number of answers to each."""
    pass_at_1: Estimate
    """The share of right answers, over items and runs."""
    majority: Estimate
    """The share of items whose most frequent answer is right."""
    tokens: Estimate
    """The mean length of an answer."""
    truncated: float
    """The share of answers that were cut."""
    looping: float
    """The share of answers that went round in circles."""
    unboxed: float
    """The share of answers that have nothing in a box."""
    detectable: float
    """The difference between two models, measured like this one and apart, that would be seen
    four times in five."""


@dataclass(frozen=True, kw_only=True)
class ProblemComparison:
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
class Metric:
    """One figure that lm-evaluation-harness gives for one of its tasks."""

    task: str
    """The task's name."""
    name: str
    """The metric's name, as the harness has it: ``acc``, ``acc_norm``."""
    value: Estimate
    """The figure; the ends of its 95 % interval are NaN where the harness gives no error."""


def score_problems(task: str, answers: Answers) -> ProblemScore:
    """Give the figures of a task, each with its interval over items."""
    items, repeats = answers.right.shape
    # two items always right and two never (Agresti & Coull), or all wrong would look certain
    surely = np.repeat([[1.0], [1.0], [0.0], [0.0]], repeats, axis=1)
    between, within = _variances(np.vstack([answers.right, surely]))
    error = math.sqrt(2 * (between + within / repeats) / items)
    return ProblemScore(
        task=task,
        items=items,
        repeats=repeats,
        pass_at_1=share(answers.right),
        majority=share(_majority(answers)[:, None]),
        tokens=_over_items(answers.tokens.astype(float)),
        truncated=float(answers.truncated.mean()),
        looping=float(answers.looping.mean()),
        unboxed=float((answers.final == "").mean()),
        detectable=(Z_95 + Z_POWER) * error,
    )


def compare_problems(first: Answers, second: Answers, wanted: float = 0.02) -> ProblemComparison:
    """Compare two models on the same items; say what it takes to see a difference of ``wanted``."""
    items, repeats = first.right.shape
    difference = second.right.mean(1) - first.right.mean(1)
    both = (_variances(answers.right.astype(float))[1] for answers in (first, second))
    within = sum(both)
    spread = float(np.append(difference, [1.0, -1.0]).var(ddof=1))  # as above (Bonett & Price)
    between = max(0.0, spread - within / repeats)
    allowed = (wanted / (Z_95 + Z_POWER)) ** 2  # squared standard error that shows it
    left = items * allowed - between
    needed = max(1, math.ceil(within / left)) if left > 0 else None
    enough = math.ceil((between + within / repeats) / allowed)
    return ProblemComparison(
        difference=paired_difference(difference), wanted=wanted, repeats=needed, items=enough
    )


def paired_difference(difference: NDArray[np.floating]) -> Estimate:
    """Give a mean difference over items [I] between −1 and 1, with its interval.

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
    return wilson(mean, count, Z_95)


def _over_items(values: NDArray[np.floating]) -> Estimate:
    """Give a mean of [I, R] and its interval over items."""
    items, repeats = values.shape
    return Documents.of(np.repeat(np.arange(items), repeats)).positive(values.ravel())


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
    """Give the variances of [I, R]: between items, and within an item from run to run."""
    items, repeats = values.shape
    if repeats == 1:  # of one run, what chance does within an item is p (1 − p) at most
        within = float(values.mean() * (1 - values.mean()))
        return 0.0, within
    within = float(values.var(1, ddof=1).mean())
    between = float(values.mean(1).var(ddof=1)) if items > 1 else 0.0
    return max(0.0, between - within / repeats), within
