"""Our mix against llama.cpp's at the same file size: same bank, ggml's rounding, held-out text.

    python benchmarks/mix.py [MODEL] [PRESET…]

Prints mean KL with its 95 % interval for each preset and for the exact knapsack at its bytes, and
the ratio of the two means; both are measured on the same windows.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bitquilt import quantize


def main() -> None:
    """Print one line per preset."""
    model = sys.argv[1] if len(sys.argv) > 1 else "demo"
    presets = sys.argv[2:] or ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M"]
    print(f"{'preset':8} {'bytes':>12} {'bits':>6}  {'llama.cpp mix: KL':28} {'ours: KL':28} ratio")
    with tempfile.TemporaryDirectory() as directory:
        for preset in presets:
            there = {"output": directory, "work_dir": Path(directory) / "work"}
            theirs = quantize(model, recipe=preset, **there).outputs[0]
            ours = quantize(model, size=f"{theirs.nbytes}B", **there).outputs[0]
            assert ours.nbytes <= theirs.nbytes
            ratio = ours.figures.kl.mean / theirs.figures.kl.mean
            print(
                f"{preset:8} {ours.nbytes:12,} {ours.bits:6.3f}  {theirs.figures.kl!s:28} "
                f"{ours.figures.kl!s:28} {ratio:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
