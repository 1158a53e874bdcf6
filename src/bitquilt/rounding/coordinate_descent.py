"""Coordinate descent: each group of columns is rounded again, now that all others are rounded.

Feedback lets a column make up only for those before it. Afterwards each group of 8 is moved to the
best codes given all the others, wherever that lowers the row's error; so the error never grows.

Letters: L inputs, N rows of each, C columns in the order of the factor, G = C / 8 groups,
K numbers that code one.
"""

from __future__ import annotations

from functools import partial

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
from bitquilt.runtime.cuda_graph import Replay


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
    one_block = Replay(partial(_descend_block, quantizer))
    for start in range(0, columns, COLUMN_BLOCK):
        own = slice(start, min(start + COLUMN_BLOCK, columns))
        groups = slice(own.start // COLUMN_GROUP, own.stop // COLUMN_GROUP)
        codes[:, groups], moved = one_block(
            torch.bmm(factor.hessian[:, own], errors),
            codes[:, groups],
            levels[:, own],
            factor.hessian[:, own, own],
            blocks[:, groups],
            triangles[:, groups],
            inverses[:, groups],
            *quantizer.scales(groups),
        )
        levels[:, own] -= moved
        errors[:, own] += moved


def _descend_block(
    quantizer: GroupQuantizer,
    pull: Tensor,
    codes: Tensor,
    levels: Tensor,
    hessian: Tensor,
    blocks: Tensor,
    triangles: Tensor,
    inverses: Tensor,
    *scales: Tensor,
) -> tuple[Tensor, Tensor]:
    """New codes of up to 128 columns, and their old levels less the new ones.

    Pull, which is H E and is overwritten, and levels are [L, 128, N], codes [L, 16, K, N], hessian
    [L, 128, 128] and the other three, of each group, [L, 16, 8, 8].
    """
    all_codes, all_moved = [], []
    for g in range(blocks.shape[1]):
        own, later = (
            slice(g * COLUMN_GROUP, (g + 1) * COLUMN_GROUP),
            slice((g + 1) * COLUMN_GROUP, None),
        )
        target = torch.baddbmm(levels[:, own], inverses[:, g], pull[:, own])
        proposed = quantizer.propose([s[g] for s in scales], target, triangles[:, g])
        new_codes, moved = better_codes(
            blocks[:, g], target, (codes[:, g], levels[:, own]), proposed
        )
        pull[:, later].baddbmm_(hessian[:, later, own], moved)
        all_codes.append(new_codes)
        all_moved.append(moved)
    return torch.stack(all_codes, 1), torch.cat(all_moved, 1)


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
    if kernels.available_for(target):
        return kernels.keep_better(hessian, target, old, new)
    (old_codes, old_levels), (new_codes, new_levels) = old, new
    moved = old_levels - new_levels
    between = (old_levels + new_levels).sub_(target, alpha=2)
    gain = column_sums(torch.bmm(hessian, between).mul_(moved))
    better = (gain > 0).unsqueeze(1)
    return torch.where(better, new_codes, old_codes), moved.mul_(better)
