"""The original on the texts it is a reference for, computed once and kept in a work directory.

Letters: N windows, L tokens in a window, T judged tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitquilt.checkpoint.checkpoint import Checkpoint
from bitquilt.divergence import LOGIT_TOKENS, TokenFigures, logits
from bitquilt.engines.torch import TorchEngine
from bitquilt.evaluation import traces
from bitquilt.evaluation.text import Text
from bitquilt.evaluation.written import Teacher, against
from bitquilt.progress import Reporter, Step
from bitquilt.workdir import WorkDir

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """The original on one text."""

    text: Text
    teacher: Teacher
    own: TokenFigures
    """Its own figures: a divergence of zero, and what it makes of the text."""
    entropy: Floats
    """Of its next-token distribution, nats, [N, L − 1]."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, text: Text, work: WorkDir) -> Reference:
        """Run the original over a text, or take what an earlier run left."""
        key = text.fingerprint[:16]
        teacher = Teacher.of(checkpoint, text.tokens, work, key)
        artefact = f"reference/{key}"
        if not work.has(artefact):
            own = against(teacher, logits(teacher.hidden, teacher.head))
            kept = {"correct": own.correct, "loss": own.loss, "entropy": _entropy(teacher)}
            work.save(artefact, {name: torch.from_numpy(v) for name, v in kept.items()}, {})
        kept = {name: tensor.numpy() for name, tensor in work.load(artefact).items()}
        zero = np.zeros_like(kept["loss"])
        own = TokenFigures(zero, zero + 1, kept["correct"], kept["loss"])
        return cls(text, teacher, own, kept["entropy"])

    def first(self, windows: int, tokens: int) -> Reference:
        """The same on the first tokens of the first windows."""
        return Reference(
            self.text.first(windows, tokens),
            self.teacher.first(windows, tokens),
            self.own.first(windows, tokens),
            self.entropy[:windows, : tokens - 1],
        )

    def compare(self, student: Iterator[Tensor], step: Step | None = None) -> TokenFigures:
        """A candidate's logits, one [L, V] per window; ``step`` is called after each."""
        return against(self.teacher, student if step is None else _counted(student, step))


def written_traces(
    checkpoint: Checkpoint, asked: Sequence[str], work: WorkDir, reporter: Reporter
) -> Text:
    """The original's answers to the questions, or those of an earlier run."""
    if not work.has("traces"):
        with (
            reporter.stage("Writing reasoning traces", len(asked)) as step,
            TorchEngine(checkpoint) as engine,
        ):
            text = traces.write(engine, asked, step)
        judged = torch.from_numpy(text.judged)
        work.save("traces", {"tokens": text.tokens, "judged": judged}, {})
    kept = work.load("traces")
    return traces.text_of(kept["tokens"], kept["judged"].numpy())


def _entropy(teacher: Teacher) -> Floats:
    """Of every next-token distribution, nats [N, L − 1]."""
    rows = []
    for hidden in teacher.hidden:
        parts = [
            torch.special.entr((part @ teacher.head.T).softmax(-1)).sum(-1)
            for part in hidden[:-1].split(LOGIT_TOKENS)
        ]
        rows.append(torch.cat(parts).cpu().numpy())
    return np.stack(rows)


def _counted(student: Iterator[Tensor], step: Step) -> Iterator[Tensor]:
    for window in student:
        yield window
        step()
