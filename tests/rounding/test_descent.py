"""Coordinate descent only ever helps, and says by how much."""

import pytest
import torch
from tests.rounding.inputs import cost, second_moment, weights

from bitquilt import grids
from bitquilt.rounding.descent import descend
from bitquilt.rounding.factor import factorize
from bitquilt.rounding.feedback import feed_back
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.rounders import LevelRounder


@pytest.mark.parametrize("name", ["Q2_K", "IQ4_XS", "3bit-g64", "mxfp4"])
def test_every_row_gains_what_it_says(name):
    grid, weight = grids.get(name), weights(16, 512)
    factor = factorize(second_moment(512), "x", print)
    rounder = LevelRounder([grid], [fit(grid, weight, factor.importance)], 512)
    ordered = factor.ordered(weight.T)
    codes, levels, before = feed_back(ordered, rounder, factor)
    codes_before = codes.clone()
    gained = descend(ordered, codes, levels, rounder, factor)
    after = cost((ordered - levels).T, factor.hessian)
    assert (gained >= 0).all()
    assert gained.sum() > 0
    assert torch.allclose(before - gained, after, rtol=1e-3, atol=1e-3 * float(before.mean()))
    assert (codes != codes_before).any()
