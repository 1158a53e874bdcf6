"""Fits of the codebook i-quants, against ggml's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.rounding.fits.blocks import (
    awkward_matrix,
    check_fields,
    errors,
    ggml_fields,
    random_blocks,
    real_blocks,
)
from torch import Tensor

from bitquilt.errors import UserError
from bitquilt.grids.grid import registered
from bitquilt.grids.iquants import Codebook
from bitquilt.rounding.fits.iquants import nearest_scales
from bitquilt.rounding.nearest import fit

GRIDS = [grid for grid in registered().values() if isinstance(grid, Codebook)]


def gaussian() -> Tensor:
    return 0.02 * torch.randn(16, 512, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
@pytest.mark.parametrize("blocks", [random_blocks, real_blocks])
def test_better_than_ggml(grid: Codebook, blocks: Callable[[int], tuple[Tensor, Tensor]]) -> None:
    weight, importance = blocks(grid.block)
    fields = fit(grid, weight, importance)
    check_fields(grid, fields)
    ours = errors(grid, fields, weight, importance)
    theirs = errors(grid, ggml_fields(grid, weight, importance), weight, importance)
    assert ours.sum() < 0.95 * theirs.sum()
    assert (ours > theirs).float().mean() < 0.03


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_awkward_blocks(grid: Codebook) -> None:
    check_fields(grid, fit(grid, awkward_matrix(grid.block), None))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_rows_are_independent(grid: Codebook) -> None:
    weight = gaussian()
    whole, part = fit(grid, weight, None), fit(grid, weight[5:7], None)
    assert all(torch.equal(whole[name][5:7], part[name]) for name in whole)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1e4])
def test_any_size_of_weights(grid: Codebook, scale: float) -> None:
    decoded = grid.decode(fit(grid, gaussian() * scale, None))
    assert decoded.isfinite().all()
    assert decoded.abs().max() <= 0.2 * scale


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
@pytest.mark.parametrize("weight", [1e30, float("inf"), float("nan")])
def test_weights_out_of_range_are_refused(grid: Codebook, weight: float) -> None:
    matrix = gaussian()
    matrix[2, 3] = weight
    with pytest.raises(UserError, match="BF16"):
        fit(grid, matrix, None)


def test_scales_reach_the_steps_they_can_say() -> None:
    steps = 0.01 * torch.tensor([[[31.0, 29, 17, 15, 9, 5, 3, 1]]])
    units, scales = nearest_scales(steps)
    torch.testing.assert_close(units * (2 * scales + 1), steps)
