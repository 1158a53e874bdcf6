"""Lattices that weights were trained for: few levels, one scale a block, bent by a coarser dtype.

A checkpoint that was trained for Q4_0 and published in BF16 has each weight within BF16's rounding
of scale · code. An ordinary weight is so by chance in a few percent of the cases, a block of 32
never.

Letters: R rows, C columns, N blocks, k weights in a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BENT = 2.0**-8
"""The most that rounding to BF16 changes a weight by, as a share of it."""
APART = 2.0625 * BENT
"""The most that a weight, measured by another, is off its code, as a share of it."""
MOST_OFF = 0.02
"""The share of a matrix's blocks that may lie elsewhere."""
FEW_BLOCKS = 64
"""As many blocks tell an ordinary matrix: hardly any lies on a lattice, and half of them must."""


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """The levels of a type: scale · code, and the codes between ``low`` and ``high``."""

    name: str
    """The type that has these levels, as ggml calls it."""
    block: int
    magnitudes: tuple[float, ...]
    """The distances of codes from zero, ascending, without zero."""
    low: float
    high: float
    powers_only: bool = False
    """Whether every scale is a power of two."""


LATTICES = (
    Lattice(name="TQ1_0", block=256, magnitudes=(1,), low=-1, high=1),
    Lattice(name="Q2_0", block=64, magnitudes=(1, 2), low=-1, high=2),
    Lattice(
        name="MXFP4",
        block=32,
        magnitudes=(0.5, 1, 1.5, 2, 3, 4, 6),
        low=-6,
        high=6,
        powers_only=True,
    ),
    Lattice(name="Q4_0", block=32, magnitudes=(1, 2, 3, 4, 5, 6, 7, 8), low=-8, high=7),
)
"""What weights are looked for on, the fewest bits first: ternary weights with a scale for fewer
than 256 of them, or rows of another length, are Q2_0's."""


def lattice_of(rows: Tensor) -> Lattice | None:
    """Return the lattice that a matrix lies on; None for ordinary weights.

    Args:
        rows: float32 [R, C], some of its rows.
    """
    if not rows.any():
        return None
    for lattice in LATTICES:
        if rows.shape[1] % lattice.block == 0:
            blocks = rows.reshape(-1, lattice.block)
            few = blocks[:: max(1, len(blocks) // FEW_BLOCKS)]
            if _share_on(few, lattice) >= 0.5 and _share_on(blocks, lattice) >= 1 - MOST_OFF:
                return lattice
    return None


def _share_on(blocks: Tensor, lattice: Lattice) -> float:
    """Return the share of blocks [N, k] that lie on a lattice."""
    return float(scales_on(blocks, lattice)[1].float().mean())


def scales_on(blocks: Tensor, lattice: Lattice) -> tuple[Tensor, Tensor]:
    """Find the scale of each block on whose levels it lies.

    The weight furthest from zero has one of few codes; each tells a scale, of which the largest
    that serves is refined by least squares.

    Args:
        blocks: float32 [..., k].
        lattice: the levels.

    Returns:
        Scales float32 [..., 1], and whether the block lies there, bool [..., 1]; a block of zeros
        does, with the scale 0.
    """
    magnitudes = blocks.new_tensor((0.0, *lattice.magnitudes))
    between = (magnitudes[1:] + magnitudes[:-1]) / 2
    furthest = blocks.abs().amax(-1, keepdim=True)
    scales, found = torch.zeros_like(furthest), furthest == 0
    for code in lattice.magnitudes:
        scale = furthest / code
        steps = blocks / scale.where(scale > 0, 1.0)
        codes = magnitudes[torch.bucketize(steps.abs(), between)].copysign(steps)
        near = (steps - codes).abs() <= APART * codes.abs()
        upright = (codes >= lattice.low) & (codes <= lattice.high)
        turned = (codes <= -lattice.low) & (codes >= -lattice.high)
        fits = near.all(-1, keepdim=True) & ~found
        if lattice.powers_only:
            fits &= torch.frexp(scale).mantissa == 0.5
        upright, turned = upright.all(-1, keepdim=True), turned.all(-1, keepdim=True)
        fits &= upright | turned
        square = codes.square().sum(-1, keepdim=True).clamp_min(1)
        refined = scale * (1 + ((steps - codes) * codes).sum(-1, keepdim=True) / square)
        scales = torch.where(fits, torch.where(upright, refined, -refined), scales)
        found = found | fits
    return scales, found
