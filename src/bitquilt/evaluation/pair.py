"""How well a small model drafts for a large one, and what that gains here.

Speculative decoding (Leviathan et al. 2023) lets a small model write a few tokens ahead, and the
large one read them at once: as many as it would have said itself are kept, and one more that it
says. Greedy, the text is the large model's own. So its answers are written once, and the small
model reads them: where its likeliest token is the next one, for several in a row, a draft of that
length would have been kept. No speculative decoding is run for it.

Letters: T tokens of an answer, n tokens of a draft.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bitquilt.calibration import corpus
from bitquilt.engines import Engine, GenerationRequest, Sampling, spoken
from bitquilt.errors import UserError
from bitquilt.evaluation.config import PairConfig
from bitquilt.evaluation.traces import likeliest, prompt_of, questions
from bitquilt.evaluation.whole_model import models_at
from bitquilt.runtime.device import computing
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.records import to_json

DRAFTS = (1, 2, 3, 4, 6, 8, 12, 16)
"""n that are tried."""
COMPARED = 60
"""Texts whose tokens are compared, of all kinds and languages."""
TIMED = 3
"""Times that a draft is read for its time."""


@dataclass(frozen=True, kw_only=True)
class DraftGain:
    """What drafts of one length gain."""

    draft: int
    """n."""
    kept: float
    """Tokens that a step of the large model gives: those of the draft that are kept, and its
    own."""
    seconds: float
    """Time of such a step: n tokens of the small model, n + 1 read by the large one."""
    speedup: float
    """How many times as fast as the large model alone."""


@dataclass(frozen=True, kw_only=True)
class PairResult:
    """A large model with a small one beside it."""

    large: str
    small: str
    answers: int
    tokens: int
    """Tokens of all answers."""
    agreement: float
    """The share of them that the small model's likeliest token is."""
    large_rate: float
    """Tokens a second of the large model alone."""
    small_rate: float
    """Tokens a second of the small one."""
    gains: Sequence[DraftGain]
    """By length of the draft."""

    @property
    def best(self) -> DraftGain:
        """The length that gains most."""
        return max(self.gains, key=lambda gain: gain.speedup)

    def to_dict(self) -> dict[str, Any]:
        """Give it in JSON types."""
        found: dict[str, Any] = to_json(self)
        return found


def measure_pair(
    large: str | Path,
    small: str | Path,
    config: PairConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> PairResult:
    """Measure how many of a small model's tokens a large one would keep, and what that gains here.

    Args:
        large: the model that is to be faster: GGUF file, MLX directory, or a whole model.
        small: the one that drafts for it.
        config: how much is measured.
        progress: where progress goes; stderr if not given.
        options: the fields of :class:`PairConfig`, instead of a config.

    Raises:
        UserError: their vocabularies differ, or a model cannot be loaded.
    """
    config, progress = PairConfig.of(config, options), progress or Progress()
    with computing("cpu", config.threads):
        one, other = models_at([large, small])
        with one.start() as big, other.start() as little:
            refuse_other_vocabulary(big, little)
            asked = questions(corpus.bundled("held-out"), config.answers)
            prompts = [prompt_of(big, question) for question in asked]
            with progress.stage("Writing answers", len(prompts)):
                answers, large_rate = _answers(big, prompts, config.length, progress)
            with progress.stage("Reading them", len(prompts)):
                agreeing = []
                for prompt, answer in zip(prompts, answers, strict=True):
                    agreeing.append(agreement(little, prompt, answer))
                    progress.advance()
            drafts = [n for n in DRAFTS if n < config.length]
            with progress.stage("Timing drafts", len(drafts)):
                _, small_rate = _answers(little, prompts[:1], config.length, None)
                reading = _reading_seconds(big, prompts[0], answers[0], drafts, progress)
    gains = [draft_gain(agreeing, n, 1 / large_rate, 1 / small_rate, reading[n]) for n in drafts]
    flat = [same for own in agreeing for same in own]
    return PairResult(
        large=one.name,
        small=other.name,
        answers=len(answers),
        tokens=len(flat),
        agreement=sum(flat) / len(flat),
        large_rate=large_rate,
        small_rate=small_rate,
        gains=gains,
    )


def refuse_other_vocabulary(large: Engine, small: Engine) -> None:
    """Refuse two models that read other tokens in the same text.

    Raises:
        UserError: naming the two and the first text that differs.
    """
    texts = (document.text for document in corpus.bundled("held-out") if document.text)
    for text in islice(texts, COMPARED):
        if large.tokenize(text[:2000]) != small.tokenize(text[:2000]):
            raise UserError(
                f"{small.info.name} cannot draft for {large.info.name}: the two split "
                f"{text[:40]!r} into different tokens; give a smaller model of the same family"
            )


def agreement(small: Engine, prompt: Sequence[int], answer: Sequence[int]) -> list[bool]:
    """Tell for each token of an answer whether it is the small model's likeliest, [T]."""
    request = GenerationRequest(
        tokens=[*prompt, *answer], sampling=Sampling(), max_tokens=1, scores=1, score_prompt=True
    )
    with small.stream([request]) as stream:
        first = next(piece for _, piece in spoken(small.info, stream))
    scores = first.prompt[-len(answer) :]  # the prompt's first token has none
    return [score.top[0][0] == score.token for score in scores]


def kept_a_step(agreeing: Sequence[bool], draft: int) -> float:
    """Return the tokens that a step gives, as a mean over an answer's steps.

    Args:
        agreeing: whether the small model's likeliest token is that of the answer, [T].
        draft: n.
    """
    place = steps = 0
    while place < len(agreeing):
        ahead = list(agreeing[place : place + draft])
        place += (ahead.index(False) if False in ahead else len(ahead)) + 1
        steps += 1
    return len(agreeing) / steps


def draft_gain(
    agreeing: Sequence[Sequence[bool]], draft: int, large: float, small: float, reading: float
) -> DraftGain:
    """Return what drafts of a length gain.

    Args:
        agreeing: of each answer, whether the small model agrees, [T].
        draft: n.
        large: seconds of a token of the large model alone.
        small: seconds of a token of the small one.
        reading: seconds that the large one takes to read n + 1 tokens.
    """
    total = sum(map(len, agreeing))
    steps = sum(len(own) / kept_a_step(own, draft) for own in agreeing)
    seconds = draft * small + reading
    kept = total / steps
    return DraftGain(draft=draft, kept=kept, seconds=seconds, speedup=kept * large / seconds)


def _answers(
    engine: Engine, prompts: Sequence[list[int]], length: int, progress: Progress | None
) -> tuple[list[list[int]], float]:
    """Return greedy answers, one after the other, and tokens a second after the first of each."""
    answers, gaps = [], []
    for prompt in prompts:
        tokens, times = [], []
        with engine.stream([likeliest(prompt, length)]) as stream:
            for _, piece in spoken(engine.info, stream):
                times.append(time.perf_counter())
                tokens.append(piece.token)
        answers.append(tokens)
        if len(times) > 1:
            gaps.append((times[-1] - times[0]) / (len(times) - 1))
        if progress is not None:
            progress.advance()
    if not gaps:
        raise UserError(
            f"{engine.info.name} ends every answer with its first token; give a model that answers"
        )
    return answers, 1 / statistics.median(gaps)


def _reading_seconds(
    engine: Engine,
    prompt: Sequence[int],
    answer: Sequence[int],
    drafts: Sequence[int],
    progress: Progress,
) -> dict[int, float]:
    """Return n → seconds until n + 1 tokens are read after a prompt that the engine has kept."""

    def seconds(tokens: Sequence[int]) -> float:
        began = time.perf_counter()
        with engine.stream([likeliest(list(tokens), 1)]) as stream:
            for _ in spoken(engine.info, stream):
                pass
        return time.perf_counter() - began

    found = {}
    for n in drafts:
        taken = []
        for _ in range(TIMED):
            seconds(prompt)  # what is kept of the prompt ends here again
            more = [answer[i % len(answer)] for i in range(n + 1)]
            taken.append(seconds([*prompt, *more]))
        found[n] = min(taken)
        progress.advance()
    return found
