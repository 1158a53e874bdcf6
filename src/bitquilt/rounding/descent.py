"""Coordinate descent: each group of columns again, now that all others are rounded.

Feedback lets a column make up only for those before it. Afterwards each group of 8 is moved to the
best codes given all the others, wherever that lowers the row's error; so the error never grows.

Letters: N rows, C columns in the order of the factor, G = C / 8 groups, K numbers that code one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitquilt.rounding.factor import BLOCK, GROUP, Factor, column_sums, diagonal_blocks
from bitquilt.rounding.rounders import Rounder


def descend(
    weight: Tensor, codes: Tensor, levels: Tensor, rounder: Rounder, factor: Factor
) -> Tensor:
    """Visit every group once, improving codes and levels in place.

    Args:
        weight: float32 [C, N], transposed and in the factor's order.
        codes: int16 [G, K, N].
        levels: float32 [C, N].
        rounder: the levels of those N rows.
        factor: of the input.

    Returns:
        how much the error E H Eᵀ of each row fell [N], under the damped Hessian.
    """
    groups = factor.groups.tolist()
    blocks = diagonal_blocks(factor.hessian)
    # H_gg = T Tᵀ with T upper triangular, as in the factor
    triangles = torch.linalg.cholesky(blocks.flip(1, 2)).flip(1, 2)
    inverses = torch.linalg.inv(blocks)
    errors = weight - levels
    gained = weight.new_zeros(weight.shape[1])
    for start in range(0, len(weight), BLOCK):
        block = slice(start, min(start + BLOCK, len(weight)))
        pull = factor.hessian[block] @ errors  # H E, [128, N]
        for first in range(block.start, block.stop, GROUP):
            own, g = slice(first, first + GROUP), first // GROUP
            target = torch.addmm(
                levels[own], inverses[g], pull[first - start : first - start + GROUP]
            )
            new_codes, new_levels = rounder.propose(groups[g], target, triangles[g])
            gain = _cost(triangles[g], target - levels[own])
            gain -= _cost(triangles[g], target - new_levels)
            better = gain > 0
            gained += gain.clamp_min_(0)
            codes[g] = torch.where(better, new_codes, codes[g])
            moved = torch.where(better, levels[own] - new_levels, 0.0)
            levels[own] -= moved
            errors[own] += moved
            pull.addmm_(factor.hessian[block, own], moved)
    return gained


def _cost(triangle: Tensor, miss: Tensor) -> Tensor:
    """‖Tᵀ miss‖² of each row [N]."""
    return column_sums((triangle.T @ miss).square_())
