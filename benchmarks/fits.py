"""Compare fits of scales with ggml's: how much less error, on which blocks more, how fast.

    python benchmarks/fits.py [TYPE ...]

Weighted errors of blocks, random ones (normal, heavy-tailed and shifted; log-normal importance) and
the demo model's down projections with the importance of calibration text; of each the mean share of
ggml's, how many blocks are worse and the worst. Speeds are of all cores, ours and ggml's in turns,
on 6144 x 1536 random weights.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import libgguf
import torch
from lib import peers
from lib.captured import captured
from torch import Tensor

from bitquilt import qtypes
from bitquilt.calibration.block_moments import input_of
from bitquilt.calibration.statistics import CalibrationStats
from bitquilt.qtypes.qtype import QuantType
from bitquilt.rounding.nearest import fit

SHAPE = (6144, 1536)
TURNS = 3
SAME = 1 + 1e-4
"""Sums of squares in float32 are not more precise than that."""

Matrices = list[tuple[Tensor, Tensor]]
"""Weights [R, C] with the importance of their columns [C]."""


def main() -> None:
    """Print a line for every type."""
    names = sys.argv[1:] or [n for n in qtypes.names("gguf") if n not in ("BF16", "F32")]
    chance, model = random_matrices(), real_matrices()
    print(
        f"{'':8} {'random: share, worse, worst':>28} {'real':>28} {'M weights/s':>12} {'ggml':>6}"
    )
    for name in names:
        qtype = qtypes.get(name)
        against = [compared(qtype, matrices) for matrices in (chance, model)]
        ours, theirs = speeds(qtype)
        print(f"{name:8} {against[0]:>28} {against[1]:>28} {ours:12.1f} {theirs:6.1f}", flush=True)


def random_matrices() -> Matrices:
    """Draw 1,008 blocks of 256, a third of each kind."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    plain, shifted = normal(56, 1536), normal(56, 1536) + 2
    heavy = normal(56, 1536) / normal(56, 1536, 3).square().mean(-1).sqrt()
    return [(0.02 * weight, normal(1536).exp()) for weight in (plain, heavy, shifted)]


def real_matrices() -> Matrices:
    """Load 64 rows of each block's down projection: 2,688 blocks of 256."""
    with captured("demo", 8) as (checkpoint, _, work):
        stats = CalibrationStats(checkpoint, work)
        modules = [module for module in checkpoint.matrices if module.endswith("down_proj")]
        return [
            (checkpoint.load(f"{m}.weight")[:64], stats.hessian(input_of(m)).diagonal().float())
            for m in modules
        ]


def compared(qtype: QuantType, matrices: Matrices) -> str:
    """Compare errors by block: our mean share of ggml's, how many are larger, the largest."""
    shares = torch.cat([_shares(qtype, weight, importance) for weight, importance in matrices])
    worse = (shares > SAME).double().mean()
    return f"{shares.mean():.3f}, {worse:.2%}, {shares.max():.3f}"


def _shares(qtype: QuantType, weight: Tensor, importance: Tensor) -> Tensor:
    """Return our error over ggml's, block by block, where ggml has any."""

    def errors(rounded: Tensor) -> Tensor:
        gap = (rounded.double() - weight).square() * importance
        return torch.unflatten(gap, 1, (-1, qtype.block)).sum(-1).flatten()

    ours = errors(qtype.decode(fit(qtype, weight, importance)))
    theirs = errors(peers.ggml(qtype, weight, importance))
    return (ours / theirs)[theirs > 0]


def speeds(qtype: QuantType) -> tuple[float, float]:
    """Return millions of weights a second, ours and ggml's, medians over turns."""
    weight, importance = 0.02 * torch.randn(*SHAPE), torch.rand(SHAPE[1])
    kind = libgguf.GGMLQuantizationType[qtype.name]
    ours, theirs = zip(
        *(
            (
                _seconds(lambda: fit(qtype, weight, importance)),
                _seconds(lambda: peers.ggml_bytes(kind, weight, importance)),
            )
            for _ in range(TURNS)
        ),
        strict=True,
    )
    return tuple(weight.numel() / statistics.median(times) / 1e6 for times in (ours, theirs))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
