"""MLX grids against mx.quantize and mx.dequantize, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitquilt import grids
from bitquilt.grids.affine import BITS, Affine
from bitquilt.grids.grid import Grid, Packed
from bitquilt.grids.mlx import from_stream, to_stream

mx = pytest.importorskip("mlx.core")

AFFINE = [grid for name in grids.names("mlx") if isinstance(grid := grids.get(name), Affine)]
MXFP4 = grids.get("mxfp4")
every_grid = pytest.mark.parametrize("grid", [*AFFINE, MXFP4], ids=lambda grid: grid.name)


def awkward_matrix(seed: int = 0, columns: int = 256) -> torch.Tensor:
    """Rows of every kind that trips quantizers, over the magnitudes that bfloat16 keeps apart."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(14, columns, generator=generator)
    weight *= torch.logspace(-6, 3, 14).unsqueeze(1)
    weight[0] = 0
    weight[1] = 0.3
    weight[2] = -0.3
    weight[3] = weight[3].abs()
    weight[4] = -weight[4].abs()
    weight[5, 7] = 60.0
    weight[6, : columns // 2] = 0
    weight[7] = torch.round(weight[7] * 4) / 4  # exact ties between levels
    weight[8] = 1.0 + weight[8].abs() * 1e-3  # zero far outside the range
    return weight


def some_importance(columns: int = 256) -> torch.Tensor:
    return torch.rand(columns, generator=torch.Generator().manual_seed(6)) ** 3 + 1e-3


def mode(grid: Grid) -> dict[str, object]:
    if isinstance(grid, Affine):
        return {"group_size": grid.block, "bits": grid.width}
    return {"group_size": 32, "bits": 4, "mode": "mxfp4"}


def mlx_rounds(grid: Grid, weight: torch.Tensor) -> dict[str, np.ndarray]:
    """What stock mlx makes of the matrix in bfloat16; halves widened to float32 for numpy."""
    with mx.stream(mx.cpu):
        parts = mx.quantize(mx.array(weight.numpy()).astype(mx.bfloat16), **mode(grid))
        wide = [p.astype(mx.float32) if p.dtype == mx.bfloat16 else p for p in parts]
        return dict(zip(("weight", "scales", "biases"), map(np.array, wide), strict=False))


def as_numpy(packed: Packed) -> dict[str, np.ndarray]:
    return {
        name: (part.float() if part.dtype == torch.bfloat16 else part).numpy()
        for name, part in packed.items()
    }


def mlx_dequantizes(grid: Grid, packed: Packed) -> np.ndarray:
    with mx.stream(mx.cpu):
        parts = [mx.array(part) for part in as_numpy(packed).values()]
        return np.array(mx.dequantize(*parts, dtype=mx.float32, **mode(grid)))


def weighted_error(
    grid: Grid, packed: Packed, weight: torch.Tensor, importance: torch.Tensor
) -> torch.Tensor:
    """By group, [R, N]."""
    gap = (grid.dequantize(packed) - weight).square() * importance
    return torch.unflatten(gap, 1, (-1, grid.block)).sum(-1)


def test_every_pair_of_bits_and_group_is_here() -> None:
    expected = {f"{bits}bit-g{group}" for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)}
    assert {grid.name for grid in AFFINE} == expected
    assert grids.get("4bit-g64").bits == 4.5
    assert grids.get("3bit-g128").bits == 3.25
    assert MXFP4.bits == 4.25


@every_grid
def test_rounds_to_the_bits_of_mlx(grid: Grid) -> None:
    weight = awkward_matrix()
    packed = grid.round_nearest(weight, None)
    expected = mlx_rounds(grid, weight)
    assert packed.keys() == expected.keys()
    for name, part in as_numpy(packed).items():
        assert part.dtype == expected[name].dtype
        assert np.array_equal(part, expected[name]), name
    assert sum(part.nbytes for part in packed.values()) == grid.nbytes(*weight.shape)


@every_grid
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-5, 0.02, 1.0, 300.0]))
@settings(max_examples=5, deadline=None)
def test_rounds_as_mlx_at_any_magnitude(grid: Grid, seed: int, scale: float) -> None:
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(seed)) * scale
    expected = mlx_rounds(grid, weight)
    for name, part in as_numpy(grid.round_nearest(weight, None)).items():
        assert np.array_equal(part, expected[name]), name


@every_grid
@pytest.mark.parametrize("weighted", [False, True])
def test_dequantizes_as_mlx_and_packs_again(grid: Grid, weighted: bool) -> None:
    packed = grid.round_nearest(awkward_matrix(), some_importance() if weighted else None)
    decoded = grid.dequantize(packed)
    assert decoded.isfinite().all()
    assert np.array_equal(decoded.numpy(), mlx_dequantizes(grid, packed))
    again = grid.pack(grid.unpack(packed))
    assert all(torch.equal(again[name], part) for name, part in packed.items())


@every_grid
def test_importance_helps_and_never_harms(grid: Grid) -> None:
    weight = awkward_matrix(seed=5)
    importance = some_importance()
    plain = weighted_error(grid, grid.round_nearest(weight, None), weight, importance)
    fitted = weighted_error(grid, grid.round_nearest(weight, importance), weight, importance)
    # The search sums a group's errors in another order than this test: allow the rounding of that.
    assert (fitted <= plain * (1 + 1e-5)).all()
    assert (fitted[9:] / plain[9:]).mean() < 0.95


@every_grid
def test_a_dead_input_does_no_harm(grid: Grid) -> None:
    importance = some_importance()
    importance[:140] = 0
    for dead in (importance, torch.zeros(256)):
        assert grid.dequantize(grid.round_nearest(awkward_matrix(), dead)).isfinite().all()


@every_grid
def test_rows_can_be_permuted_before_or_after(grid: Grid) -> None:
    weight, importance = awkward_matrix(), some_importance()
    order = torch.randperm(14, generator=torch.Generator().manual_seed(3))
    before = grid.round_nearest(weight[order], importance)
    after = grid.round_nearest(weight, importance)
    assert all(torch.equal(before[name], part[order]) for name, part in after.items())


@pytest.mark.parametrize("width", BITS)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 3), eights=st.integers(1, 6))
@settings(max_examples=10, deadline=None)
def test_streams_hold_their_codes_low_bits_first(
    width: int, seed: int, rows: int, eights: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(1 << width, (rows, 32 * eights), generator=generator, dtype=torch.uint8)
    words = to_stream(codes, width)
    assert torch.equal(from_stream(words, width), codes)
    # Independent: each row read as one big integer.
    for row, stored in zip(codes.tolist(), words.numpy(), strict=True):
        expected = sum(code << width * i for i, code in enumerate(row))
        assert int.from_bytes(stored.tobytes(), "little") == expected


def test_mxfp4_takes_groups_below_its_range() -> None:
    """mx.quantize wraps around there and yields infinities; we take the smallest scale."""
    packed = MXFP4.round_nearest(torch.full((1, 32), 1e-39), None)
    assert packed["scales"].item() == 0
    assert MXFP4.dequantize(packed).isfinite().all()
