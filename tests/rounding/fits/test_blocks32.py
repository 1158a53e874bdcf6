"""Fits of ggml's blocks of 32 against ggml, and against every scale there is."""

import pytest
import torch
from tests.rounding.fits.blocks import (
    check_awkward_blocks,
    check_no_block_is_worse,
    errors,
    ggml_fields,
    random_blocks,
)

from bitquilt import grids
from bitquilt.grids.grid import Grid
from bitquilt.rounding.fits.family import fit_family

every_grid = pytest.mark.parametrize(
    "grid",
    [grids.get(name) for name in ("Q4_0", "Q5_0", "Q4_1", "Q5_1", "Q8_0")],
    ids=lambda grid: grid.name,
)


@every_grid
def test_no_block_is_worse_than_ggmls(grid: Grid) -> None:
    check_no_block_is_worse(grid, ggml_fields)


@every_grid
def test_awkward_blocks(grid: Grid) -> None:
    check_awkward_blocks(grid)


def test_close_to_the_best_of_all_scales() -> None:
    """Q4_0 has few enough scales to try each half-precision number within its range."""
    grid = grids.get("Q4_0")
    weight, importance = random_blocks(32)
    weight = weight[::7, :32].contiguous()
    importance = importance[:32].contiguous()
    found = errors(
        grid, fit_family(grid, weight, importance.expand_as(weight)), weight, importance
    )[:, 0]
    reach = weight.abs().amax(1, keepdim=True)
    best = torch.full_like(found, torch.inf)
    for part in torch.linspace(1 / 20, 1 / 6, 1000):
        for scale in (part * reach, -part * reach):
            scale = scale.half().float()
            level = (weight / scale).round().clamp(-8, 7) * scale
            best = torch.minimum(best, ((level - weight).double().square() * importance).sum(1))
    assert (found.sum() / best.sum()) < 1.03
