"""The written file in the engine that will run it: does it load, read and predict the same?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from bitquilt.calibration.corpus import Document
from bitquilt.calibration.text import encoder
from bitquilt.errors import EngineMissingError, UserError
from bitquilt.metrics.kl import TokenFigures
from bitquilt.metrics.teacher import Figures, Teacher, require_finite, summarize, token_metrics
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.targets.base import Target

FAR, NEAR = 2.0, 0.1
"""An engine whose KL exceeds FAR times torch's and NEAR is wrong, not merely rounding
activations."""
SAME = 5e-4
"""Two KL that are nearer to each other are told as one."""
SPREAD = 0.1
"""The share of a file's KL by which its error and the engine's, which are independent, may seem to
add up or to make up for each other on an excerpt."""
SAMPLE = "Hello, world! 347 + 585 = 932; naïve café — 你好 🙂\n\tdef f(x): return x**2  # ok"
"""Text whose tokens must be the same in the engine: digits, accents, other scripts, code."""


@dataclass(frozen=True, kw_only=True)
class EngineExcerpt:
    """One file in its engine and in torch, on the same tokens: an excerpt of the closing text."""

    in_engine: Figures
    """Computed by the engine that runs the file."""
    in_torch: Figures
    """Computed by torch on the weights read back from the file."""

    @property
    def difference(self) -> float:
        """By how much the engine's mean KL exceeds torch's, in nats per token."""
        return self.in_engine.kl.mean - self.in_torch.kl.mean

    def usual(self, target: Target) -> float:
        """By how much the engine's arithmetic moves the KL at most, in nats per token."""
        return target.engine_adds + SPREAD * self.in_torch.kl.mean

    def judged(self, target: Target) -> str:
        """Say what was found, and whether the difference is what the engine's arithmetic makes.

        Args:
            target: the format of the file.
        """
        engine, torch_ = self.in_engine, self.in_torch
        said = (
            f"{engine.engine} loads it and splits text into the same tokens; on {engine.tokens:,} "
            f"of the tokens its excerpt KL is {engine.kl.mean:.3g} nats/token"
        )
        if abs(self.difference) < SAME:
            return f"{said} there as in torch"
        said += f" there and {torch_.kl.mean:.3g} in torch; "
        why = f"{target.engine} {target.engine_rounds}"
        most = self.usual(target)
        if abs(self.difference) <= most:
            return f"{said}the difference is as usual, since {why}"
        return (
            f"{said}the difference is unusual: {why}, which moves it by {most:.2g} at most; "
            "`bitquilt eval` compares them on more text"
        )


def run_in_engine(
    path: Path, target: Target, checkpoint: Checkpoint, teacher: Teacher, in_torch: TokenFigures
) -> tuple[EngineExcerpt | None, str]:
    """Load a file in its engine, in a process of its own, and compare it with the original.

    Returns:
        Its figures and torch's on an excerpt of the teacher's text, and a sentence about them; no
        figures, and why, where the engine is not installed.

    Raises:
        UserError: the engine cannot load the file, reads text as other tokens, or computes
            something else than torch does with the file's weights, NaN among it.
    """
    name, excerpt = target.engine, teacher.first(*target.check_excerpt)
    sample = Document("check", "sample", SAMPLE, None)
    try:
        with target.open_engine(path) as engine:
            ours, theirs = encoder(checkpoint)(sample), engine.tokenize(SAMPLE, add_special=True)
            if theirs != ours:
                raise UserError(
                    f"{path}: {name} splits text into other tokens than {checkpoint.name}'s own "
                    f"tokenizer does ({theirs[:8]}… for {ours[:8]}…); please report this model"
                )
            student = (torch.from_numpy(window) for window in engine.logits(excerpt.tokens.numpy()))
            checked = require_finite(student, str(path), name)
            in_engine = summarize(token_metrics(excerpt, checked), name, excerpt.documents)
    except EngineMissingError as missing:
        return None, f"not run: {missing}"
    expected = summarize(in_torch.first(*target.check_excerpt), "torch", excerpt.documents)
    if not in_engine.kl.mean <= FAR * expected.kl.mean + NEAR:  # NaN is not, either
        raise UserError(
            f"{path}: {name} does not compute what the file's weights say (KL "
            f"{in_engine.kl.mean:.3g} nats/token where torch has {expected.kl.mean:.3g} on the "
            "same tokens); please report this model"
        )
    found = EngineExcerpt(in_engine=in_engine, in_torch=expected)
    return found, found.judged(target)
