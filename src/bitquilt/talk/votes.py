"""Several samples at once, and the answer that most of them have, boxed or on the last line."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from bitquilt.engines import Engine
from bitquilt.runtime.progress import Progress
from bitquilt.talk.events import End
from bitquilt.talk.prompt import Prompt
from bitquilt.talk.sample import AnswerSettings, Sample
from bitquilt.talk.session import continued

Counted = Literal["box", "last line"]


@dataclass(frozen=True)
class Votes:
    """The samples and their answers."""

    final: str | None
    """The answer that most samples agree on, as the first of them wrote it; of two with as many
    votes, the earlier one. None where no sample has an answer."""
    counted: Counted
    """Where the answers are: on the last line where no sample has a box."""
    share: float
    """The share of ``final`` in all samples, those without an answer included."""
    counts: dict[str, int]
    """The number of samples per answer, the most frequent first."""
    samples: list[End]


def vote(
    engine: Engine,
    prompt: Prompt,
    settings: AnswerSettings,
    count: int,
    progress: Progress | None = None,
) -> Votes:
    """Sample a prompt ``count`` times in one batch, with seeds that follow each other.

    Args:
        engine: reads the prompt once.
        prompt: best asks for a boxed answer.
        settings: the settings of every sample; the first has their seed.
        count: the number of samples.
        progress: advances as each sample ends.
    """
    seed = settings.sampling.seed
    seeded = [replace(settings.sampling, seed=seed + i) for i in range(count)]
    samples = [Sample(engine, prompt, replace(settings, sampling=one)) for one in seeded]
    for _, event in continued(engine, samples):
        if isinstance(event, End) and progress is not None:
            progress.advance()
    return tally([sample.ended for sample in samples if sample.ended])


def tally(samples: list[End]) -> Votes:
    """Count the answers; those that differ only in spelling are one.

    Where no sample has a box, the last lines are the answers of those that ended by themselves.
    """
    boxed = any(sample.final for sample in samples)
    put: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for sample in samples:
        if said := sample.final if boxed else _last_line(sample):
            counts[put.setdefault(normalized(said), said)] += 1
    ranked = dict(counts.most_common())
    final = next(iter(ranked), None)
    share = ranked[final] / len(samples) if final else 0.0
    return Votes(final, "box" if boxed else "last line", share, ranked, samples)


def _last_line(sample: End) -> str | None:
    """The last line of an answer, without the marks of Markdown; None if it was cut before."""
    lines = sample.answer.split("\n") if sample.finish_reason == "stop" else []
    return next((line for each in reversed(lines) if (line := each.strip("*_`# \t"))), None)


def normalized(answer: str) -> str:
    r"""An answer without spaces, ``$``, ``\text{}``, commas in numbers, idle zeros, and case."""
    answer = re.sub(r"\\(?=[$%])", "", answer.replace("{,}", ","))
    answer = re.sub(r"\\(?:text|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", answer)
    answer = re.sub(r"\\[,;:! ]|\\left|\\right|[\s$]", "", answer.replace("\\dfrac", "\\frac"))
    answer = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer)
    answer = re.sub(r"(\.\d*?)0+(?!\d)", r"\1", answer)
    return re.sub(r"\.(?!\d)", "", answer).casefold()
