"""The original on the texts it is a reference for, computed once and kept in a work directory.

Letters: N windows, L tokens in a window, T scored tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitquilt.engines.torch import TorchEngine
from bitquilt.evaluation import traces
from bitquilt.evaluation.config import TraceConfig
from bitquilt.evaluation.text import Text
from bitquilt.metrics.intervals import Documents
from bitquilt.metrics.kl import Estimate, TokenFigures
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import Teacher, self_metrics, token_metrics, zero_divergence
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir

TokenValues = NDArray[np.float32]
"""One number for each token."""


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
    def of(cls, original: OriginalModel, text: Text) -> Reference:
        """Run the original over a text, or take what an earlier run left."""
        teacher, work = original.on(text.tokens), original.work
        artefact = f"reference/{text.fingerprint[:16]}"
        if not work.has(artefact):
            figures = zip(("correct", "loss", "entropy"), self_metrics(teacher), strict=True)
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

    def compare(self, student: Iterator[Tensor], progress: Progress | None = None) -> TokenFigures:
        """Compare a model's logits, one [L, V] per window; ``progress`` advances after each."""
        return token_metrics(
            self.teacher, student if progress is None else _counted(student, progress)
        )


@dataclass(frozen=True)
class Talk:
    """What the original answers when it is asked."""

    traces: Text
    """The answers at temperature 1."""
    asked: list[str]
    """A few of the questions."""
    answers: list[str]
    """The greedy answers to these."""
    config: TraceConfig
    """How much was asked."""

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        questions: Sequence[str],
        config: TraceConfig,
        work: WorkDir,
        progress: Progress,
    ) -> Talk:
        """Ask the original, or take what an earlier run left."""
        wanted = json.dumps([questions, config.tokens, config.shown])
        key = hashlib.sha256(wanted.encode()).hexdigest()[:16]
        name, asked = f"talk/{key}", list(questions[: config.shown])
        if not work.has(name):
            with (
                progress.stage("Writing reasoning traces", len(questions) + len(asked)),
                TorchEngine(checkpoint) as engine,
            ):
                text, answers = traces.write_traces(engine, questions, asked, config, progress)
            work.save_json(name, answers)
            scored = torch.from_numpy(text.scored)
            # named as in the work directories of earlier versions
            work.save(name, {"tokens": text.tokens, "judged": scored}, {})
        kept = work.load(name)
        text = traces.text_of(kept["tokens"], kept["judged"].numpy())
        return cls(text, asked, work.load_json(name), config)


def _counted(student: Iterator[Tensor], progress: Progress) -> Iterator[Tensor]:
    for window in student:
        yield window
        progress.advance()
