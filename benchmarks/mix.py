"""Whole files at the bytes of llama.cpp's mixes: theirs, their mix with our rounding, and ours.

    python benchmarks/mix.py [MODEL] [PRESET…]

Prints mean KL with its 95 % interval, on the same windows, of what llama-quantize makes (its mix,
ggml's rounding, an importance matrix of the tokens that we calibrate on), of its mix rounded by us,
and of our mix rounded by us; and the share that ours has of theirs. Text of domains that the
calibration text has none of has a line of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from lib import peers
from lib.closing import closing_text
from lib.plain_moments import PlainMoments, plain_moments
from torch import Tensor

from bitquilt import qtypes, quantize
from bitquilt.calibration.block_moments import input_of
from bitquilt.calibration.text import (
    budget_for,
    calibration_documents,
    calibration_windows,
    encoder,
)
from bitquilt.calibration.text_budget import WINDOW
from bitquilt.metrics.teacher import HeldOutFigures, weights_metrics
from bitquilt.models import open_checkpoint
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Allocation
from bitquilt.runtime.workdir import WorkDir


def main() -> None:
    """Print one line per preset and kind of text."""
    model = sys.argv[1] if len(sys.argv) > 1 else "demo"
    checkpoint = open_checkpoint(model)
    presets = sys.argv[2:] or ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M"]
    columns = ("llama.cpp", "its mix, our rounding", "ours")
    about = f"{'preset':8} {'bytes':>12} {'bits':>6}  {'text':6}"
    print(f"{about}  {''.join(f'{c:28}' for c in columns)} share")
    moments = plain_moments(checkpoint, calibration_tokens(checkpoint))
    with tempfile.TemporaryDirectory() as directory:
        there = {"output": directory, "work_dir": Path(directory) / "work"}
        for preset in presets:
            mix = quantize(model, recipe=preset, **there).outputs[0]
            ours = quantize(model, size=f"{mix.nbytes}B", **there).outputs[0]
            assert ours.nbytes <= mix.nbytes
            theirs = by_ggml(model, there["work_dir"], mix.allocation, moments)
            about = f"{preset:8} {ours.nbytes:12,} {ours.bits:6.3f}"
            made = (theirs, mix.figures, ours.figures)
            for kind in theirs.kinds:
                found = [figures.kinds[kind].kl for figures in made]
                cells = "".join(f"{kl!s:28}" for kl in found)
                share = found[-1].mean / found[0].mean
                print(f"{about}  {kind:6}  {cells} {share:.3f}", flush=True)


def calibration_tokens(checkpoint: Checkpoint) -> Tensor:
    """The windows that ``bitquilt quantize`` calibrates on."""
    documents, _ = calibration_documents(None)
    count = budget_for(checkpoint).calibration
    return calibration_windows(documents, encoder(checkpoint), count, WINDOW)[0]


def by_ggml(model: str, directory: Path, mix: Allocation, moments: PlainMoments) -> HeldOutFigures:
    """A mix with every matrix rounded by ggml, on the windows that the run was measured on."""
    checkpoint = open_checkpoint(model)
    with WorkDir(directory, json.loads((directory / "settings.json").read_text())) as work:
        closing = closing_text(checkpoint, work)

        def load(name: str) -> Tensor:
            module, weight = name.removesuffix(".weight"), checkpoint.load(name)
            if module not in mix:
                return weight
            importance = moments[input_of(module)].diagonal().contiguous()
            return peers.ggml(qtypes.get(mix[module]), weight, importance)

        return closing.figures(weights_metrics(closing.teacher, checkpoint, load), "torch")


if __name__ == "__main__":
    main()
