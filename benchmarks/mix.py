"""Whole files at the bytes of others' mixes: theirs, their mix with our rounding, and ours.

    python benchmarks/mix.py [MODEL] [PRESET…]
    python benchmarks/mix.py [MODEL] --autoscheme BITS… [--steps N]

Prints mean KL with its 95 % interval, on the same windows, of what llama-quantize makes (its mix,
ggml's rounding, an importance matrix of the tokens that we calibrate on), of its mix rounded by us,
and of our mix rounded by us; and the share that ours has of theirs. Text of domains that the
calibration text has none of has a line of its own.

With ``--autoscheme`` the other maker is AutoRound with its AutoScheme. It chooses among K-quants,
and is asked for so many bits of the codes of a weight; scales add half a bit. Ours has the bytes
that come out. AutoRound must be installed: ``pip install auto-round``. It tunes each block for 200
steps, or N, which takes minutes to hours without a GPU. With ``--shaken`` the weights of a GGUF
file are moved off its levels first, so that no type wins by holding them. With ``--text FILE`` the
documents of that file judge in place of the bundled ones.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lib import autoround, peers
from lib.bench import Weights
from lib.closing import closing_text
from lib.plain_moments import PlainMoments, plain_moments
from lib.shaken import shaken
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
from bitquilt.models.checkpoint import EMBEDDING, Checkpoint
from bitquilt.qtypes.qtype import Allocation
from bitquilt.runtime.workdir import WorkDir
from bitquilt.targets import get_target


def main() -> None:
    """Print one line per mix and kind of text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("presets", nargs="*", default=["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M"])
    parser.add_argument("--autoscheme", nargs="+", type=float, default=[], metavar="BITS")
    parser.add_argument("--steps", type=int, default=200, help="of AutoRound, per block")
    parser.add_argument("--shaken", action="store_true")
    parser.add_argument("--text", type=Path, metavar="FILE")
    asked = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as directory:
        model = str(shaken(Path(asked.model), Path(directory))) if asked.shaken else asked.model
        work_dir = Path(directory) / "work"
        there = {"output": directory, "work_dir": work_dir, "held_out": asked.text}
        if asked.autoscheme:
            by_autoscheme(model, asked.autoscheme, asked.steps, there)
        else:
            by_llama_cpp(model, asked.presets, there)


def by_llama_cpp(model: str, presets: Sequence[str], there: dict[str, Any]) -> None:
    """Compare with each preset."""
    checkpoint = open_checkpoint(model)
    columns = ("llama.cpp", "its mix, our rounding", "ours")
    about = f"{'preset':8} {'bytes':>12} {'bits':>6}  {'text':6}"
    print(f"{about}  {''.join(f'{c:28}' for c in columns)} share")
    moments = plain_moments(checkpoint, calibration_tokens(checkpoint))
    for preset in presets:
        mix = quantize(model, recipe=preset, **there).outputs[0]
        ours = quantize(model, size=f"{mix.nbytes}B", **there).outputs[0]
        assert ours.nbytes <= mix.nbytes

        def rounded(module: str, mix: Allocation = mix.allocation) -> Tensor:
            return by_ggml(checkpoint, mix[module], module, moments)

        theirs = figures_of(checkpoint, there, mix.allocation, rounded)
        about = f"{preset:8} {ours.nbytes:12,} {ours.bits:6.3f}"
        print_lines(about, (theirs, mix.figures, ours.figures))


def by_autoscheme(model: str, bits: Sequence[float], steps: int, there: dict[str, Any]) -> None:
    """Compare with AutoScheme's mixes, and tell what both took; our first file takes a bank."""
    checkpoint = open_checkpoint(model)
    columns = ("AutoScheme, AutoRound", "ours")
    about = f"{'asked':8} {'bytes':>12} {'bits':>6}  {'text':6}"
    print(f"{about}  {''.join(f'{c:28}' for c in columns)} share")
    tokens = calibration_tokens(checkpoint)
    importance = plain_moments(checkpoint, tokens)
    for asked in bits:
        started = time.monotonic()
        mix, tuned = autoround.mixed(checkpoint, asked, tokens, steps)
        theirs_took = time.monotonic() - started
        print(f"  AutoScheme: {counted(mix)}, embedding {mix[EMBEDDING]}", flush=True)
        size = get_target("gguf").plan(checkpoint, mix).total_bytes
        started = time.monotonic()
        ours = quantize(model, size=f"{size}B", **there).outputs[0]
        ours_took = time.monotonic() - started
        assert ours.nbytes <= size
        print(f"  ours: {counted(ours.allocation)}, embedding {ours.allocation[EMBEDDING]}")

        def rounded(module: str, mix: Allocation = mix, tuned: Weights = tuned) -> Tensor:
            own = tuned.get(module)
            return by_ggml(checkpoint, mix[module], module, importance) if own is None else own

        theirs = figures_of(checkpoint, there, mix, rounded)
        print_lines(f"{asked:<8g} {size:12,} {ours.bits:6.3f}", (theirs, ours.figures))
        print(f"  took {theirs_took:.0f} s and {ours_took:.0f} s", flush=True)


def print_lines(about: str, made: Sequence[HeldOutFigures]) -> None:
    """Print a line per kind of text; the share is the last one's of the first one's."""
    for kind in made[0].kinds:
        found = [figures.kinds[kind].kl for figures in made]
        cells = "".join(f"{kl!s:28}" for kl in found)
        share = found[-1].mean / found[0].mean
        print(f"{about}  {kind:6}  {cells} {share:.3f}", flush=True)


def counted(mix: Allocation) -> str:
    """Say how many matrices have each type."""
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(mix.values()).items()))


def calibration_tokens(checkpoint: Checkpoint) -> Tensor:
    """The windows that ``bitquilt quantize`` calibrates on."""
    documents, _ = calibration_documents(None)
    count = budget_for(checkpoint).calibration
    return calibration_windows(documents, encoder(checkpoint), count, WINDOW)[0]


def by_ggml(checkpoint: Checkpoint, qtype: str, module: str, moments: PlainMoments) -> Tensor:
    """One matrix [R, C] as llama-quantize rounds it with an importance matrix."""
    importance = moments[input_of(module)].diagonal().contiguous()
    return peers.ggml(qtypes.get(qtype), checkpoint.load(f"{module}.weight"), importance)


def figures_of(
    checkpoint: Checkpoint,
    there: dict[str, Any],
    mix: Allocation,
    rounded: Callable[[str], Tensor],
) -> HeldOutFigures:
    """A mix rounded by others, on the windows that the runs with these options were measured on."""
    directory = there["work_dir"]
    with WorkDir(directory, json.loads((directory / "settings.json").read_text())) as work:
        closing = closing_text(checkpoint, work, there["held_out"])

        def load(name: str) -> Tensor:
            module = name.removesuffix(".weight")
            return rounded(module) if module in mix else checkpoint.load(name)

        return closing.figures(weights_metrics(closing.teacher, checkpoint, load), "torch")


if __name__ == "__main__":
    main()
