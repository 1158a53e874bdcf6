"""Error feedback: every group of columns makes up for the errors of those rounded before it.

LDLQ (Chee et al. 2023), which equals GPTQ (Frantar et al. 2022): with H = U Uᵀ the target of a
group is its weights plus the errors before it times U_ig T_g⁻¹, and what remains costs ‖Tᵀ miss‖².
The scales stay as they were fitted, so columns may go in any order. Updates are lazy: one product
for each 128 columns, small ones within.

Letters: N rows, C columns in the order of the factor, G = C / 8 groups, K numbers that code one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitquilt.rounding.factor import BLOCK, GROUP, Factor, column_sums
from bitquilt.rounding.rounders import Rounder


def feed_back(weight: Tensor, rounder: Rounder, factor: Factor) -> tuple[Tensor, Tensor, Tensor]:
    """Round with error feedback.

    Args:
        weight: float32 [C, N], transposed and in the factor's order.
        rounder: the levels of those N rows.
        factor: of the input.

    Returns:
        codes int16 [G, K, N] and levels float32 [C, N], both in the factor's order, and the error
        E H Eᵀ of each row [N] under the damped Hessian.
    """
    columns, rows = weight.shape
    groups = factor.groups.tolist()
    codes = weight.new_empty((len(groups), rounder.width, rows), dtype=torch.int16)
    levels, errors = torch.empty_like(weight), torch.empty_like(weight)
    cost = weight.new_zeros(rows)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        targets = torch.addmm(
            weight[start:stop], factor.carry[:start, start:stop].T, errors[:start]
        )
        for first in range(start, stop, GROUP):
            own, later = slice(first, first + GROUP), slice(first + GROUP, stop)
            g = first // GROUP
            target, triangle = targets[own.start - start : own.stop - start], factor.triangles[g]
            codes[g], levels[own] = rounder.propose(groups[g], target, triangle)
            cost += column_sums((triangle.T @ (target - levels[own])).square_())
            torch.sub(weight[own], levels[own], out=errors[own])
            targets[later.start - start :].addmm_(factor.carry[own, later].T, errors[own])
    return codes, levels, cost
