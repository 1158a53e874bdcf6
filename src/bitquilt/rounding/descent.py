"""Coordinate descent: each group of columns again, now that all others are rounded.

Feedback lets a column make up only for those before it. Afterwards each group of 8 is moved to the
best codes given all the others, wherever that lowers the row's error; so the error never grows.

Letters: L inputs, N rows of each, C columns in the order of the factor, G = C / 8 groups,
K numbers that code one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitquilt.rounding.factor import BLOCK, GROUP, Factor, column_sums, diagonal_blocks
from bitquilt.rounding.rounders import Rounder


def descend(
    weight: Tensor, codes: Tensor, levels: Tensor, rounder: Rounder, factor: Factor
) -> None:
    """Visit every group once, improving codes and levels in place.

    Args:
        weight: float32 [L, C, N], transposed and in the factor's order.
        codes: int16 [L, G, K, N].
        levels: float32 [L, C, N].
        rounder: the levels of those rows.
        factor: of the inputs.
    """
    columns = weight.shape[1]
    blocks = diagonal_blocks(factor.hessian)
    # H_gg = T Tᵀ with T upper triangular, as in the factor
    triangles = torch.linalg.cholesky(blocks.flip(2, 3)).flip(2, 3)
    inverses = torch.linalg.inv(blocks)
    errors = weight - levels
    for start in range(0, columns, BLOCK):
        block = slice(start, min(start + BLOCK, columns))
        pull = torch.bmm(factor.hessian[:, block], errors)  # H E, [L, 128, N]
        for first in range(block.start, block.stop, GROUP):
            own, g = slice(first, first + GROUP), first // GROUP
            here = pull[:, first - start : first - start + GROUP]
            target = torch.baddbmm(levels[:, own], inverses[:, g], here)
            new_codes, new_levels = rounder.propose(g, target, triangles[:, g])
            gain, moved = _gain(blocks[:, g], target, levels[:, own], new_levels)
            better = (gain > 0).unsqueeze(1)
            codes[:, g] = torch.where(better, new_codes, codes[:, g])
            moved.mul_(better)
            levels[:, own] -= moved
            errors[:, own] += moved
            pull.baddbmm_(factor.hessian[:, block, own], moved)


def _gain(hessian: Tensor, target: Tensor, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """By how much new levels are nearer to targets than old ones [L, N], and old − new.

    ‖t − o‖² − ‖t − n‖² = (n − o) · (2t − o − n), in the metric of a group's Hessian [L, 8, 8].
    """
    moved = old - new
    between = (old + new).sub_(target, alpha=2)
    return column_sums(torch.bmm(hessian, between).mul_(moved)), moved
