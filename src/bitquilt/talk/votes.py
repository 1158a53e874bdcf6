"""Several samples at once, and the boxed answer that most of them have."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

from bitquilt.engines import Engine
from bitquilt.runtime.progress import Progress
from bitquilt.talk.events import End
from bitquilt.talk.prompt import Prompt
from bitquilt.talk.sample import AnswerSettings, Sample
from bitquilt.talk.session import continued


@dataclass(frozen=True)
class Votes:
    """The samples and their boxed answers."""

    final: str | None
    """The answer that most samples agree on, as the first of them wrote it; of two with as many
    votes, the earlier one. None where no sample has a boxed answer."""
    share: float
    """The share of ``final`` in all samples, those without a boxed answer included."""
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
        prompt: asks for a boxed answer.
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
    """Count the boxed answers; those that differ only in spelling are one."""
    put: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for sample in samples:
        if sample.final:
            counts[put.setdefault(normalized(sample.final), sample.final)] += 1
    ranked = dict(counts.most_common())
    final = next(iter(ranked), None)
    return Votes(final, ranked[final] / len(samples) if final else 0.0, ranked, samples)


def normalized(answer: str) -> str:
    r"""An answer without spaces, ``$``, ``\text{}``, commas in numbers, idle zeros, and case."""
    answer = re.sub(r"\\(?=[$%])", "", answer.replace("{,}", ","))
    answer = re.sub(r"\\(?:text|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", answer)
    answer = re.sub(r"\\[,;:! ]|\\left|\\right|[\s$]", "", answer.replace("\\dfrac", "\\frac"))
    answer = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer)
    answer = re.sub(r"(\.\d*?)0+(?!\d)", r"\1", answer)
    return re.sub(r"\.(?!\d)", "", answer).casefold()
