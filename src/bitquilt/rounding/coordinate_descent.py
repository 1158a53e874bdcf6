"""Coordinate descent: each group of columns is rounded again, now that all others are rounded.

Feedback lets a column make up only for those before it. Afterwards each group of 8 is moved to the
best codes given all the others, wherever that lowers the row's error; so the error never grows.

Letters: L inputs, N rows of each, C columns in the order of the factor, G = C / 8 groups,
K numbers that code one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitquilt.rounding import kernels
from bitquilt.rounding.group_quantizer import GroupQuantizer
from bitquilt.rounding.hessian import (
    COLUMN_BLOCK,
    COLUMN_GROUP,
    Factor,
    column_sums,
    diagonal_blocks,
)


def descend(
    weight: Tensor, codes: Tensor, levels: Tensor, quantizer: GroupQuantizer, factor: Factor
) -> None:
    """Visit every group once, improving codes and levels in place.

    Args:
        weight: float32 [L, C, N], transposed and in the factor's order.
        codes: int16 [L, G, K, N].
        levels: float32 [L, C, N].
        quantizer: the levels of those rows.
        factor: of the inputs.
    """
    columns = weight.shape[1]
    blocks = diagonal_blocks(factor.hessian)
    # H_gg = T Tᵀ with T upper triangular, as in the factor
    triangles = torch.linalg.cholesky(blocks.flip(2, 3)).flip(2, 3)
    inverses = torch.linalg.inv(blocks)
    errors = weight - levels
    in_kernel = kernels.available_for(weight)
    for start in range(0, columns, COLUMN_BLOCK):
        own = slice(start, min(start + COLUMN_BLOCK, columns))
        groups = slice(own.start // COLUMN_GROUP, own.stop // COLUMN_GROUP)
        pull = torch.bmm(factor.hessian[:, own], errors)
        metric = factor.hessian[:, own, own], triangles[:, groups], inverses[:, groups]
        found = codes[:, groups], levels[:, own], errors[:, own]
        if in_kernel:
            kernels.descend_block(quantizer.in_kernel(groups), pull, metric, found)
        else:
            _by_torch(quantizer, groups, pull, metric, found)


def _by_torch(
    quantizer: GroupQuantizer,
    groups: slice,
    pull: Tensor,
    metric: tuple[Tensor, Tensor, Tensor],
    found: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Improve codes, levels and errors of up to 128 columns in place.

    Args:
        quantizer: the levels of all groups.
        groups: those of the block.
        pull: H E [L, 128, N]; overwritten.
        metric: the block of the Hessian [L, 128, 128], and the triangles and inverses of its
            groups, [L, 16, 8, 8] each.
        found: codes int16 [L, 16, K, N], and levels and errors [L, 128, N].
    """
    hessian, triangles, inverses = metric
    codes, levels, errors = found
    scales = quantizer.scales(groups)
    for g in range(triangles.shape[1]):
        own, later = (
            slice(g * COLUMN_GROUP, (g + 1) * COLUMN_GROUP),
            slice((g + 1) * COLUMN_GROUP, None),
        )
        target = torch.baddbmm(levels[:, own], inverses[:, g], pull[:, own])
        proposed = quantizer.propose([s[g] for s in scales], target, triangles[:, g])
        codes[:, g], moved = better_codes(
            hessian[:, own, own], target, (codes[:, g], levels[:, own]), proposed
        )
        pull[:, later].baddbmm_(hessian[:, later, own], moved)
        levels[:, own] -= moved
        errors[:, own] += moved


def better_codes(
    hessian: Tensor, target: Tensor, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Take new codes of eight columns where they are nearer to the targets.

    Returned are the codes, and the old levels less those of the codes.

    ‖t − o‖² − ‖t − n‖² = (n − o) · (2t − o − n), in the metric of the group's Hessian.

    Args:
        hessian: float32 [L, 8, 8].
        target: float32 [L, 8, N].
        old: codes int16 [L, K, N] and levels float32 [L, 8, N].
        new: the same.
    """
    (old_codes, old_levels), (new_codes, new_levels) = old, new
    moved = old_levels - new_levels
    between = (old_levels + new_levels).sub_(target, alpha=2)
    gain = column_sums(torch.bmm(hessian, between).mul_(moved))
    better = (gain > 0).unsqueeze(1)
    return torch.where(better, new_codes, old_codes), moved.mul_(better)
