"""Error feedback: every group of columns makes up for the errors of those rounded before it.

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

from bitquilt.rounding.factor import BLOCK, GROUP, Factor, column_sums
from bitquilt.rounding.rounders import Rounder


def feed_back(weight: Tensor, rounder: Rounder, factor: Factor) -> tuple[Tensor, Tensor, Tensor]:
    """Round with error feedback.

    Args:
        weight: float32 [L, C, N], transposed and in the factor's order.
        rounder: the levels of those rows.
        factor: of the inputs.

    Returns:
        codes int16 [L, G, K, N] and levels float32 [L, C, N], both in the factor's order, and the
        error E H Eᵀ of each row [L, N] under the damped Hessian.
    """
    inputs, columns, rows = weight.shape
    shape = (inputs, columns // GROUP, rounder.width, rows)
    codes = weight.new_empty(shape, dtype=torch.int16)
    levels, errors = torch.empty_like(weight), torch.empty_like(weight)
    cost = weight.new_zeros(inputs, rows)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        targets = torch.baddbmm(
            weight[:, start:stop], factor.carry[:, :start, start:stop].mT, errors[:, :start]
        )
        for first in range(start, stop, GROUP):
            own, later = slice(first, first + GROUP), slice(first + GROUP, stop)
            g = first // GROUP
            target = targets[:, first - start : first - start + GROUP]
            triangles = factor.triangles[:, g]
            codes[:, g], levels[:, own] = rounder.propose(g, target, triangles)
            miss = torch.bmm(triangles.mT, target - levels[:, own])
            cost += column_sums(miss.square_())
            torch.sub(weight[:, own], levels[:, own], out=errors[:, own])
            rest = targets[:, first - start + GROUP :]
            rest.baddbmm_(factor.carry[:, own, later].mT, errors[:, own])
    return codes, levels, cost
