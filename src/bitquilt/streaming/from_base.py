"""Models that bitquilt has no tables of, rounded to the nearest with importance, as a stream.

Read :func:`stream_base` first. llama.cpp's converter makes the base, an unquantized GGUF file;
:mod:`bitquilt.bases` tells what its matrices read; the rest is that of any GGUF file.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

from bitquilt.bases.importance import BaseModel, open_base
from bitquilt.bases.served_base import end_served
from bitquilt.config import QuantizeConfig
from bitquilt.gguf import SUFFIX
from bitquilt.gguf.imatrix import write_imatrix
from bitquilt.rounding import METHODS
from bitquilt.runtime.device import computing
from bitquilt.runtime.files import atomic_write, refuse_file
from bitquilt.runtime.progress import Progress
from bitquilt.streaming.base import (
    base_importance_of,
    base_name,
    base_of,
    tokenizer_of,
    write_base_vision,
)
from bitquilt.streaming.make_imatrix import refuse_overwrite
from bitquilt.streaming.quantize_gguf import GgufResult, quantize_gguf
from bitquilt.targets import GGUF
from bitquilt.targets.same_tokens import refuse_other_tokens_of

SAFE_TYPE = "Q8_0"
"""What matrices have that no parameter has the numbers of."""


def stream_base(model: str | Path, config: QuantizeConfig, progress: Progress) -> list[GgufResult]:
    """Convert a model, run it for an importance matrix, and quantize the base as a stream.

    Args:
        model: hub id or Hugging Face directory.
        config: what is wanted; its ``base`` is a file that was converted already.
        progress: told what goes on.

    Returns:
        A result for each budget.

    Raises:
        UserError: bad input, no converter, a size that cannot be met: one sentence.
    """
    output = Path(config.output)
    refuse_file(output, "--output")
    with computing(config.device, config.threads):
        directory, path = base_of(model, config.base, output, progress)
    try:
        return _streamed(model, directory, path, config, progress)
    finally:
        end_served(path)


def _streamed(
    model: str | Path, directory: Path, path: Path, config: QuantizeConfig, progress: Progress
) -> list[GgufResult]:
    """Run a model for an importance matrix, and quantize its base."""
    output = Path(config.output)
    imatrix = output / f"{base_name(model, directory)}-imatrix{SUFFIX}"
    refuse_overwrite(imatrix)
    progress.say(
        f"{directory.name} is quantized from {path} with an importance matrix: every matrix is "
        "rounded to the nearest level, without error feedback"
    )
    if config.engine_check:
        for note in refuse_other_tokens_of(path, directory.name, *tokenizer_of(directory)):
            progress.say(note)
    write_base_vision(GGUF, model, directory, output, progress)
    with computing(config.device, config.threads):
        base = open_base(path, directory, progress)
        matrix = base_importance_of(base, directory, config, progress)
    with atomic_write(imatrix) as temporary:
        write_imatrix(temporary, matrix)
    streamed = {"base": None, "calibration": None, "device": "auto", "imatrix": imatrix}
    streamed |= {"rounding": METHODS[-1], "work_dir": None}
    with tempfile.TemporaryDirectory() as scratch:
        if base.alone and config.recipe is None:
            streamed["recipe"] = _pins(base, Path(scratch))
        asked = dataclasses.replace(config, **streamed)  # type: ignore[arg-type]
        return quantize_gguf(path, asked, progress=progress)


def _pins(base: BaseModel, scratch: Path) -> Path:
    """A recipe that keeps matrices without a partner at a safe type."""
    path = scratch / "without-partner.json"
    path.write_text(json.dumps({"pin": dict.fromkeys(base.alone, SAFE_TYPE)}), encoding="utf-8")
    return path
