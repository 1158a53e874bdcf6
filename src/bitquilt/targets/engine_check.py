"""The written file in the engine that will run it: does it load, read and predict the same?"""

from __future__ import annotations

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
activations (0.006 in llama.cpp)."""
SAMPLE = "Hello, world! 347 + 585 = 932; naïve café — 你好 🙂\n\tdef f(x): return x**2  # ok"
"""Text whose tokens must be the same in the engine: digits, accents, other scripts, code."""


def run_in_engine(
    path: Path, target: Target, checkpoint: Checkpoint, teacher: Teacher, in_torch: TokenFigures
) -> tuple[Figures | None, str]:
    """Load a file in its engine, in a process of its own, and compare it with the original.

    Returns:
        Its figures on an excerpt of the teacher's text, and what was checked; no figures, and
        why, where the engine is not installed.

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
                    f"{path}: {name} reads text as other tokens than {checkpoint.name}'s own "
                    f"tokenizer ({theirs[:8]}… for {ours[:8]}…); please report this model"
                )
            student = (torch.from_numpy(window) for window in engine.logits(excerpt.tokens.numpy()))
            checked = require_finite(student, str(path), name)
            found = summarize(token_metrics(excerpt, checked), name)
    except EngineMissingError as missing:
        return None, f"not run: {missing}"
    expected = float(in_torch.first(*target.check_excerpt).kl.mean())
    if not found.kl.mean <= FAR * expected + NEAR:  # NaN is not, either
        raise UserError(
            f"{path}: {name} computes something else than the file's weights say (KL "
            f"{found.kl.mean:.3g} where torch has {expected:.3g}); please report this model"
        )
    note = f"{name} loads it, reads the same tokens, and has KL {found.kl.mean:.3g}"
    return found, f"{note} where torch has {expected:.3g}"
