"""GPTQ's error feedback: each group of columns makes up for the errors of those before it.

LDLQ (Chee et al. 2023), which equals GPTQ (Frantar et al. 2022): with H = U Uᵀ the target of a
group is its weights plus the errors before it times U_ig T_g⁻¹, and what remains costs ‖Tᵀ miss‖².
The scales stay as they were fitted, so columns may go in any order. Updates are lazy: one product
for each 128 columns, small ones within.

Letters: L inputs, N rows of each, C columns in the order of the factor, G = C / 8 groups,
K numbers that code one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitquilt.rounding import kernels
from bitquilt.rounding.group_quantizer import GroupQuantizer
from bitquilt.rounding.hessian import COLUMN_BLOCK, COLUMN_GROUP, Factor, column_sums


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
    in_kernel = kernels.available_for(weight)
    for start in range(0, columns, COLUMN_BLOCK):
        own = slice(start, min(start + COLUMN_BLOCK, columns))
        groups = slice(own.start // COLUMN_GROUP, own.stop // COLUMN_GROUP)
        targets = torch.baddbmm(weight[:, own], factor.carry[:, :start, own].mT, errors[:, :start])
        metric = factor.carry[:, own, own], factor.triangles[:, groups]
        found = codes[:, groups], levels[:, own], errors[:, own], cost
        if in_kernel:
            kernels.feed_back(quantizer.in_kernel(groups), weight[:, own], targets, metric, found)
        else:
            _by_torch(quantizer, groups, weight[:, own], targets, metric, found)
    return codes, levels, cost


def _by_torch(
    quantizer: GroupQuantizer,
    groups: slice,
    weight: Tensor,
    targets: Tensor,
    metric: tuple[Tensor, Tensor],
    found: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Choose codes and levels of up to 128 columns, and add theirs to the costs so far.

    Args:
        quantizer: the levels of all groups.
        groups: those of the block.
        weight: [L, 128, N].
        targets: [L, 128, N]; overwritten.
        metric: carry [L, 128, 128] and triangles [L, 16, 8, 8].
        found: is filled: codes int16 [L, 16, K, N], levels and errors [L, 128, N], and what the
            rows cost [L, N].
    """
    carry, triangles = metric
    codes, levels, errors, cost = found
    scales, count = quantizer.scales(groups), triangles.shape[1]
    for g in range(count):
        own, later = (
            slice(g * COLUMN_GROUP, (g + 1) * COLUMN_GROUP),
            slice((g + 1) * COLUMN_GROUP, None),
        )
        codes[:, g], levels[:, own] = quantizer.propose(
            [s[g] for s in scales], targets[:, own], triangles[:, g]
        )
        torch.sub(weight[:, own], levels[:, own], out=errors[:, own])
        if g + 1 < count:
            targets[:, later].baddbmm_(carry[:, own, later].mT, errors[:, own])
    # [L, 128, N] -> [L 16, 8, N], of which each group costs ‖Tᵀ miss‖²
    miss = torch.unflatten(targets - levels, 1, (-1, COLUMN_GROUP)).flatten(0, 1)
    costs = column_sums(torch.bmm(triangles.flatten(0, 1).mT, miss).square_())
    cost += column_sums(torch.unflatten(costs, 0, (-1, count)))
