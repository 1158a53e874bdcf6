"""The fit of MLX's affine grids against mlx."""

import pytest
import torch
from tests.rounding.fits.blocks import check_awkward_blocks, check_no_block_is_worse, errors
from tests.rounding.fits.mlx_peer import mlx_fields

from bitquilt import grids
from bitquilt.grids.affine import Affine
from bitquilt.grids.grid import Grid
from bitquilt.rounding.fits.family import fit_family

AFFINE = [grid for name in grids.names("mlx") if isinstance(grid := grids.get(name), Affine)]
every_grid = pytest.mark.parametrize("grid", AFFINE, ids=lambda grid: grid.name)


@every_grid
def test_no_group_is_worse_than_mlxs(grid: Grid) -> None:
    pytest.importorskip("mlx.core")
    check_no_block_is_worse(grid, mlx_fields)


@every_grid
def test_awkward_groups(grid: Grid) -> None:
    check_awkward_blocks(grid)


@every_grid
def test_huge_weights_stay_finite(grid: Grid) -> None:
    weight = torch.randn(2, grid.block, generator=torch.Generator().manual_seed(0))
    weight *= 3e38 / weight.abs().amax()
    fields = fit_family(grid, weight, torch.ones_like(weight))
    assert all(field.isfinite().all() for field in fields.values())


@pytest.mark.parametrize(
    ("bits", "share"), [(2, 0.49), (3, 0.52), (4, 0.615), (5, 0.625), (6, 0.635), (8, 0.42)]
)
def test_share_of_mlxs_error(bits: int, share: float) -> None:
    """Gaussian weights with log-normal importance in groups of 64."""
    pytest.importorskip("mlx.core")
    generator = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(64, 2048, generator=generator)
    importance = (1.5 * torch.randn(2048, generator=generator)).exp()
    importance /= importance.mean()
    grid = grids.get(f"{bits}bit-g64")
    ours = errors(grid, fit_family(grid, weight, importance.expand_as(weight)), weight, importance)
    theirs = errors(grid, mlx_fields(grid, weight, importance), weight, importance)
    assert ours.sum() < share * theirs.sum()
