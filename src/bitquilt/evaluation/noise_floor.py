"""What is noise: the original with nothing quantized, in bfloat16 and in each engine.

A difference that is smaller is none. It is the original's alone, so it is kept with its answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from bitquilt.calibration.text import Encode
from bitquilt.evaluation.model_file import ModelFile, counted, logits_in, predicting
from bitquilt.evaluation.reference import Reference
from bitquilt.evaluation.results import NoiseFloor
from bitquilt.evaluation.versions import installed
from bitquilt.metrics.teacher import require_finite
from bitquilt.models.blockwise import Advance
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.records import from_json, to_json
from bitquilt.runtime.workdir import WorkDir
from bitquilt.targets import Target

if TYPE_CHECKING:
    from bitquilt.evaluation.original import Original

TORCH_EXCERPT = 24, 128
"""Windows, and tokens of each, that are read in bfloat16 in torch."""


REPORT = "no file of this model can be measured; please report it"
"""What to do about an original that computes NaN or infinity."""


def floors(
    original: Original,
    reference: Reference,
    targets: Sequence[Target],
    encode: Encode,
    work: WorkDir,
    progress: Progress,
) -> list[NoiseFloor]:
    """The original in bfloat16, where torch has it so, and unquantized in each target's engine.

    Args:
        original: the model.
        reference: it on a text, of which an excerpt is read.
        targets: the output formats.
        encode: its tokenizer.
        work: keeps what was found, for the next evaluation.
        progress: where progress goes.
    """
    found = []
    in_torch = [] if original.halved is None else [None]
    for target in (*in_torch, *targets):
        library = target.packages[-1] if target else "torch"
        # where a library is missing, its engine says so
        key = f"noise/{library}-{installed(library)}-{reference.text.fingerprint[:16]}"
        if (kept := work.load_json(key)) is None:
            part = excerpt(reference, target) if target else reference.first(*TORCH_EXCERPT)
            total = part.text.tokens.numel() * (original.weights_per_token + part.comparing)
            title = f"Measuring noise in {target.engine if target else 'bfloat16'}"
            with progress.stage(title, total, "noise"):
                if target is None:
                    floor = _half(original, part, progress.advance)
                else:
                    floor = _unquantized(original, part, target, encode, progress.advance)
            kept = to_json(floor)
            work.save_json(key, kept)
        found.append(from_json(NoiseFloor, kept))
    return found


def excerpt(reference: Reference, target: Target) -> Reference:
    """As much of a text as the engine of a target is compared with torch on."""
    return reference.first(*target.noise_excerpt)


def _half(original: Original, reference: Reference, advance: Advance) -> NoiseFloor:
    """The original in bfloat16."""
    model, tokens = original.halved, reference.text.tokens
    assert model is not None  # else nobody asks
    student = predicting(model, model.last_hidden(tokens, advance), reference.vocabulary)
    weights = original.head_weights + reference.comparing
    return _floor(original, "bfloat16 in torch", reference, counted(student, weights, advance))


def _unquantized(
    original: Original, reference: Reference, target: Target, encode: Encode, advance: Advance
) -> NoiseFloor:
    """The original's weights as they are, in a file for the engine."""
    with original.unquantized(target) as path:
        file = ModelFile.at(path)
        most = Counter(one.qtype for one in target.stored(path)).most_common(1)
        with file.opened(original.checkpoint, encode) as engine:
            student = logits_in(engine, reference.text.tokens, reference.vocabulary)
            weights = original.weights_per_token + reference.comparing
            name = f"{most[0][0]} in {file.engine}"
            return _floor(original, name, reference, counted(student, weights, advance))


def _floor(
    original: Original, name: str, reference: Reference, student: Iterator[Tensor]
) -> NoiseFloor:
    checked = require_finite(student, f"{original.name}, unquantized", name, REPORT)
    found = reference.compare(checked)
    return NoiseFloor(
        name=name, kl=reference.positive(found.kl), tokens=int(reference.text.scored.sum())
    )
