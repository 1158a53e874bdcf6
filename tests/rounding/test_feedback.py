"""Error feedback against GPTQ as its paper writes it, column by column."""

import pytest
import torch
from tests.rounding.inputs import cost, second_moment, weights

from bitquilt import grids
from bitquilt.rounding.factor import factorize
from bitquilt.rounding.feedback import feed_back
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.rounders import LevelRounder


def gptq(weight, levels, low, high, hessian):
    """Frantar et al. 2022, algorithm 1, in double precision: H⁻¹, its upper factor, one column at
    a time; scales are given, one per column.
    """
    weight, steps, offsets = weight.double().clone(), levels[0].double(), levels[1].double()
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian.double()), upper=True)
    rounded = torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        code = ((weight[:, j] - offsets[:, j]) / steps[:, j]).round().clamp(low, high)
        rounded[:, j] = code * steps[:, j] + offsets[:, j]
        error = (weight[:, j] - rounded[:, j]) / upper[j, j]
        weight[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    return rounded.float()


@pytest.mark.parametrize("name", ["Q3_K", "Q4_K", "4bit-g64", "Q4_1"])
def test_equals_gptq_of_the_paper(name):
    grid, weight, columns = grids.get(name), weights(6, 512), 512
    factor = factorize(second_moment(columns), "x", print)
    fields = fit(grid, weight, factor.importance)
    lines = grid.levels(fields)
    spread = columns // lines.steps.shape[1]
    steps = lines.steps.repeat_interleave(spread, 1).T
    offsets = torch.zeros_like(lines.steps) if lines.offsets is None else lines.offsets
    offsets = offsets.repeat_interleave(spread, 1).T
    in_order = [factor.ordered(each).T for each in (steps, offsets)]
    ordered = factor.ordered(weight.T)
    expected = gptq(ordered.T, in_order, grid.low, grid.high, factor.hessian)

    rounder = LevelRounder([grid], [fields], columns)
    codes, levels, costs = feed_back(ordered.contiguous(), rounder, factor)
    # ties and the last bits of float32 may send a column elsewhere, and the rest of its row
    same = (levels.T - expected).abs() < 1e-4
    assert same.float().mean() > 0.97
    assert torch.allclose(costs, cost(ordered.T - levels.T, factor.hessian), rtol=1e-3)
    assert torch.allclose(costs.sum(), cost(ordered.T - expected, factor.hessian).sum(), rtol=0.02)
    fields = fields | rounder.fields(grid, codes[factor.groups.argsort()])
    decoded = grid.decode(grid.unpack(grid.pack(fields)))
    assert torch.allclose(decoded, factor.restored(levels).T, rtol=1e-5, atol=1e-6)


def test_an_error_free_grid_stays_error_free():
    grid, weight = grids.get("Q8_0"), weights(4, 64)
    weight = grid.decode(fit(grid, weight, None))
    factor = factorize(second_moment(64), "x", print)
    rounder = LevelRounder([grid], [fit(grid, weight, None)], 64)
    _, levels, costs = feed_back(factor.ordered(weight.T), rounder, factor)
    assert torch.allclose(factor.restored(levels).T, weight, atol=1e-6)
    assert costs.max() < 1e-6
