"""GPTQ's error feedback: each group of columns makes up for the errors of those before it.

LDLQ (Chee et al. 2023), which equals GPTQ (Frantar et al. 2022): with H = U Uᵀ the target of a
group is its weights plus the errors before it times U_ig T_g⁻¹, and what remains costs ‖Tᵀ miss‖².
The scales stay as they were fitted, so columns may go in any order. Updates are lazy: one product
for each 128 columns, small ones within.

Letters: L inputs, N rows of each, C columns in the order of the factor, G = C / 8 groups,
K numbers that code one.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bitquilt.rounding.group_quantizer import GroupQuantizer
from bitquilt.rounding.hessian import COLUMN_BLOCK, COLUMN_GROUP, Factor, column_sums
from bitquilt.runtime.cuda_graph import Replay


def gptq(
    weight: Tensor, quantizer: GroupQuantizer, factor: Factor
) -> tuple[Tensor, Tensor, Tensor]:
    """Round with error feedback.

    Args:
        weight: float32 [L, C, N], transposed and in the factor's order.
        quantizer: the levels of those rows.
        factor: of the inputs.

    Returns:
        codes int16 [L, G, K, N] and levels float32 [L, C, N], both in the factor's order, and the
        error E H Eᵀ of each row [L, N] under the damped Hessian.
    """
    inputs, columns, rows = weight.shape
    shape = (inputs, columns // COLUMN_GROUP, quantizer.width, rows)
    codes = weight.new_empty(shape, dtype=torch.int16)
    levels, errors = torch.empty_like(weight), torch.empty_like(weight)
    cost = weight.new_zeros(inputs, rows)
    one_block = Replay(partial(_feed_back_block, quantizer))
    for start in range(0, columns, COLUMN_BLOCK):
        own = slice(start, min(start + COLUMN_BLOCK, columns))
        groups = slice(own.start // COLUMN_GROUP, own.stop // COLUMN_GROUP)
        targets = torch.baddbmm(weight[:, own], factor.carry[:, :start, own].mT, errors[:, :start])
        codes[:, groups], levels[:, own], cost = one_block(
            weight[:, own],
            targets,
            cost,
            factor.triangles[:, groups],
            factor.carry[:, own, own],
            *quantizer.scales(groups),
        )
        torch.sub(weight[:, own], levels[:, own], out=errors[:, own])
    return codes, levels, cost


def _feed_back_block(
    quantizer: GroupQuantizer,
    weight: Tensor,
    targets: Tensor,
    cost: Tensor,
    triangles: Tensor,
    carry: Tensor,
    *scales: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose codes and levels of up to 128 columns, and add theirs to the costs so far.

    Weights and targets are [L, 128, N] (targets are overwritten), triangles [L, 16, 8, 8] and
    carry [L, 128, 128].
    """
    codes, parts = [], []
    count = triangles.shape[1]
    for g in range(count):
        own, later = (
            slice(g * COLUMN_GROUP, (g + 1) * COLUMN_GROUP),
            slice((g + 1) * COLUMN_GROUP, None),
        )
        new_codes, new_levels = quantizer.propose(
            [s[g] for s in scales], targets[:, own], triangles[:, g]
        )
        codes.append(new_codes)
        parts.append(new_levels)
        if g + 1 < count:
            error = weight[:, own] - new_levels
            targets[:, later].baddbmm_(carry[:, own, later].mT, error)
    levels = torch.cat(parts, 1)
    # [L, 128, N] -> [L 16, 8, N], of which each group costs ‖Tᵀ miss‖²
    miss = torch.unflatten(targets - levels, 1, (-1, COLUMN_GROUP)).flatten(0, 1)
    costs = column_sums(torch.bmm(triangles.flatten(0, 1).mT, miss).square_())
    cost += column_sums(torch.unflatten(costs, 0, (-1, count)))
    return torch.stack(codes, 1), levels, cost
