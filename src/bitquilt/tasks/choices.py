"""Multiple choice: the ending that a model finds likeliest, as lm-evaluation-harness picks it.

Letters: I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitquilt.engines import Engine
from bitquilt.metrics.kl import Estimate
from bitquilt.runtime.progress import Progress
from bitquilt.tasks.likelihood import encode_pair, likelihoods
from bitquilt.tasks.scores import paired_difference, share
from bitquilt.tasks.task_data import Choice


@dataclass(frozen=True)
class Picks:
    """A model on the items of a multiple-choice task, each [I]."""

    right: NDArray[np.bool_]
    """Whether the likeliest ending is the right one."""
    right_by_byte: NDArray[np.bool_]
    """Whether the ending likeliest per byte is right; short endings have no advantage then."""


@dataclass(frozen=True, kw_only=True)
class ChoiceScore:
    """A model on a multiple-choice task."""

    task: str
    """The task's name."""
    items: int
    """The number of items."""
    accuracy: Estimate
    """The share of items whose likeliest ending is the right one."""
    accuracy_by_byte: Estimate
    """The share of items whose ending likeliest per byte is the right one."""


def pick(engine: Engine, items: Sequence[Choice], progress: Progress) -> Picks:
    """Pick the likeliest ending of every item; ``progress`` advances after each ending."""
    pairs = [encode_pair(engine, item.context, ending) for item in items for ending in item.endings]
    nats = iter([found.nats for found in likelihoods(engine, pairs, progress)])
    right, by_byte = [], []
    for item in items:
        own = np.array([next(nats) for _ in item.endings])
        sizes = np.array([len(ending.encode()) for ending in item.endings])
        right.append(own.argmax() == item.right)
        by_byte.append((own / sizes).argmax() == item.right)
    return Picks(np.array(right), np.array(by_byte))


def score_choices(task: str, picks: Picks) -> ChoiceScore:
    """Count what a model picked rightly."""
    return ChoiceScore(
        task=task,
        items=len(picks.right),
        accuracy=share(picks.right[:, None]),
        accuracy_by_byte=share(picks.right_by_byte[:, None]),
    )


def compare_choices(first: Picks, second: Picks) -> Estimate:
    """Give the accuracy by byte of the second model less that of the first, item by item."""
    return paired_difference(second.right_by_byte.astype(float) - first.right_by_byte)
