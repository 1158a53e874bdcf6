"""Measure the whole layer bank, every matrix on every type, polished: seconds and memory.

    python benchmarks/bank.py [demo|950m] [gguf|mlx ...]

On a GPU where there is one. Half of the types on half of the blocks at a time: the four lines are
alike if the cost grows linearly in either. Statistics come from a few windows of text, for they
decide nothing here.
"""

from __future__ import annotations

import resource
import sys
import time

import torch
from lib.captured import captured
from lib.timed import MAXRSS_UNIT

from bitquilt import qtypes
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.names import layer_of
from bitquilt.rounding.layer_bank import Candidates, LayerBank
from bitquilt.rounding.round_layers import polish_layers, round_layers
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.progress import Silent

WINDOWS = 8


def main() -> None:
    """Make the bank and print what each quarter of it took."""
    shape = sys.argv[1] if len(sys.argv) > 1 else "demo"
    targets = sys.argv[2:] or ["gguf", "mlx"]
    with captured(shape, WINDOWS) as (checkpoint, _, work):
        measure(LayerBank(checkpoint, work, "full"), targets)


def measure(bank: LayerBank, targets: list[str]) -> None:
    """Round everything; print seconds, and memory at the end."""
    checkpoint, device = bank.checkpoint, compute_device()
    names = sorted({name for target in targets for name in qtypes.names(target)})
    total = cells = 0.0
    for part, chosen in (("one half", names[::2]), ("the other", names[1::2])):
        for place, modules in zip(("even", "odd"), by_block(checkpoint), strict=True):
            candidates = fitting(checkpoint, modules, chosen)
            seconds = timed(bank, candidates)
            weights = sum(size(checkpoint, m) * len(own) for m, own in candidates.items())
            rate = weights / seconds / 1e6
            print(
                f"{part} of the types, {place} blocks: {seconds:6.1f} s, {rate:6.1f}M weights/s",
                flush=True,
            )
            total, cells = total + seconds, cells + weights
    print(f"{len(names)} types on {device}: {total:.0f} s for {cells / 1e6:,.0f}M rounded weights")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT
    print(f"peak memory: {peak / 1e9:.1f} GB", end="")
    if device.type == "cuda":
        used, kept = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        print(f", on the GPU {used / 1e9:.1f} GB, with torch's reserve {kept / 1e9:.1f} GB", end="")
    print()


def by_block(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """Split matrices into those of even blocks or of none, and those of odd blocks."""
    odd = [m for m in checkpoint.matrices if (layer_of(m) or 0) % 2]
    return [m for m in checkpoint.matrices if m not in odd], odd


def fitting(checkpoint: Checkpoint, modules: list[str], names: list[str]) -> Candidates:
    """List the types that each matrix can have."""
    return {
        m: [name for name in names if qtypes.get(name).fits(checkpoint.matrices[m][1])]
        for m in modules
    }


def size(checkpoint: Checkpoint, module: str) -> int:
    """Return the number of weights of a matrix."""
    rows, columns = checkpoint.matrices[module]
    return rows * columns


def timed(bank: LayerBank, candidates: Candidates) -> float:
    """Return the seconds it takes to round and polish all candidates."""
    started = time.monotonic()
    round_layers(bank, candidates, Silent())
    polish_layers(bank, candidates, Silent())
    return time.monotonic() - started


if __name__ == "__main__":
    main()
