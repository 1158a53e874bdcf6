"""The original on the texts it is a reference for, computed once and kept in a work directory.

Letters: N windows, L tokens in a window, T scored tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bitquilt.engines import GenerationRequest
from bitquilt.engines.tokenizer import HubTokenizer
from bitquilt.evaluation import traces
from bitquilt.evaluation.config import TraceConfig
from bitquilt.evaluation.text import Text
from bitquilt.metrics.intervals import Documents
from bitquilt.metrics.kl import Estimate, TokenFigures
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import Teacher, self_metrics, token_metrics, zero_divergence
from bitquilt.models.blockwise import Advance, ignore
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir

if TYPE_CHECKING:
    from bitquilt.evaluation.original import Original

TokenValues = NDArray[np.float32]
"""One number for each token."""
WRITING = 3
"""A token that is written takes as long as so many that are read: weights serve a few rows only."""


@dataclass(frozen=True)
class Reference:
    """The original on one text."""

    text: Text
    teacher: Teacher
    own: TokenFigures
    """Its own figures: a divergence of zero, and what it makes of the text."""
    entropy: TokenValues
    """The entropy of its next-token distribution, nats, [N, L − 1]."""

    @classmethod
    def of(cls, original: OriginalModel, text: Text, advance: Advance = ignore) -> Reference:
        """Run the original over a text, or take what an earlier run left.

        ``advance`` is told of tokens × weights as they are done.
        """
        teacher, work = original.on(text.tokens, advance=advance), original.work
        artefact = f"reference/{text.fingerprint[:16]}"
        if not work.has(artefact):
            figures = zip(
                ("correct", "loss", "entropy"), self_metrics(teacher, advance), strict=True
            )
            work.save(artefact, dict(figures), {})
        kept = {name: tensor.numpy() for name, tensor in work.load(artefact).items()}
        return cls(text, teacher, zero_divergence(kept["correct"], kept["loss"]), kept["entropy"])

    def first(self, windows: int, tokens: int) -> Reference:
        """Give the reference on the first tokens of the first windows."""
        return Reference(
            self.text.first(windows, tokens),
            self.teacher.first(windows, tokens),
            self.own.first(windows, tokens),
            self.entropy[:windows, : tokens - 1],
        )

    def mean(self, values: TokenValues) -> Estimate:
        """Average values [N, L − 1] of either sign over the scored tokens, with an interval."""
        return self._documents.mean(values[self.text.scored])

    def positive(self, values: TokenValues) -> Estimate:
        """Average values [N, L − 1] that are not negative, with an interval that is not either."""
        return self._documents.positive(values[self.text.scored])

    @property
    def _documents(self) -> Documents:
        return Documents.of(self.text.documents, self.text.domains)

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self.teacher.head)

    @property
    def comparing(self) -> int:
        """The weights that comparing a token's logits takes as long as: the original's own logits,
        and passes over the vocabulary.
        """
        return 2 * self.teacher.head.numel()

    def compare(self, student: Iterator[Tensor]) -> TokenFigures:
        """Compare a model's logits, one [L, V] per window."""
        return token_metrics(self.teacher, student)


@dataclass(frozen=True)
class Talk:
    """What the original answers when it is asked."""

    drawn: Text
    """The answers at temperature 1, of the domain ``traces`` or ``answers``."""
    asked: list[str]
    """A few of the questions."""
    answers: list[str]
    """The greedy answers to these."""
    length: int
    """All answers were cut after this many tokens."""

    @classmethod
    def of(
        cls,
        original: Original,
        questions: Sequence[str],
        config: TraceConfig,
        length: int,
        work: WorkDir,
        progress: Progress,
    ) -> Talk:
        """Ask the original, or take what an earlier run left; answers are kept one by one.

        Args:
            original: it has a chat template.
            questions: all are answered at random, the first of them greedily too.
            config: says how many are.
            length: answers are cut after this many tokens.
            work: keeps the answers.
            progress: where progress goes.
        """
        checkpoint = original.checkpoint
        directory = checkpoint.tokenizer_dir
        assert directory is not None  # it has encoded the text
        tokenizer = HubTokenizer(directory, checkpoint.config, checkpoint.generation_config)
        asked = list(questions[: config.shown])
        prompts = [traces.prompt_of(tokenizer, question) for question in questions]
        requests = [traces.at_random(prompt, n, length) for n, prompt in enumerate(prompts)]
        requests += [traces.likeliest(prompt, length) for prompt in prompts[: len(asked)]]
        domain = traces.domain_of(tokenizer.info, questions[0])
        answers = _answers(original, requests, domain, work, progress)
        own = [answer.tokens for answer in answers[: len(prompts)]]
        said = [answer.text for answer in answers[len(prompts) :]]
        return cls(traces.as_text(prompts, own, domain), asked, said, length)


def _answers(
    original: Original,
    requests: Sequence[GenerationRequest],
    domain: str,
    work: WorkDir,
    progress: Progress,
) -> list[traces.WrittenAnswer]:
    """Give the original's answers: those that are kept, and those that it still has to write."""
    names = [f"talk/{_digest(request)}" for request in requests]
    missing = [n for n, name in enumerate(names) if work.load_json(name) is None]
    if missing:
        what = "reasoning traces" if domain == traces.TRACES else "answers"
        weights = original.weights_per_token * WRITING
        total, left = (
            sum(request.max_tokens for request in some) * weights
            for some in (requests, [requests[n] for n in missing])
        )

        def keep(number: int, answer: traces.WrittenAnswer) -> None:
            work.save_json(names[missing[number]], asdict(answer))

        title = f"{original.name} writes {len(missing)} {what}"
        with progress.stage(title, total, "writing"), original.speaker() as engine:
            progress.skip(total - left)
            wanted = [requests[n] for n in missing]
            traces.write_answers(engine, wanted, keep, lambda n: progress.advance(n * weights))
    return [traces.WrittenAnswer(**work.load_json(name)) for name in names]


def _digest(request: GenerationRequest) -> str:
    wanted = json.dumps(asdict(request), sort_keys=True)
    return hashlib.sha256(wanted.encode()).hexdigest()[:16]
