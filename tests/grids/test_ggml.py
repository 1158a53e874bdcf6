"""GGUF grids against ggml's own bytes (libgguf) and gguf-py's dequantization."""

import gguf
import libgguf
import numpy as np
import pytest
import torch
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st

from bitquilt import grids
from bitquilt.grids.ggml import GgmlGrid

GRIDS = [grid for name in grids.names("gguf") if isinstance(grid := grids.get(name), GgmlGrid)]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)

# Bytes in a block, from ggml's documentation of its formats: name → (bytes, weights).
COSTS = {
    "Q2_K": (84, 256), "Q3_K": (110, 256), "Q4_K": (144, 256), "Q5_K": (176, 256),
    "Q6_K": (210, 256), "IQ4_XS": (136, 256), "IQ3_S": (110, 256), "IQ3_XXS": (98, 256),
    "IQ2_S": (82, 256), "IQ2_XS": (74, 256), "IQ2_XXS": (66, 256), "Q4_0": (18, 32),
    "Q4_1": (20, 32), "Q5_0": (22, 32), "Q5_1": (24, 32), "IQ4_NL": (18, 32), "Q8_0": (34, 32),
}  # fmt: skip


def awkward_matrix(columns: int) -> torch.Tensor:
    """Rows of every kind that trips quantizers: zeros, constants, tiny, large, outliers."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(12, columns, generator=generator)
    weight[0] = 0
    weight[1] = 0.3
    weight[2] = -0.3
    weight[3] *= 1e-30
    weight[4] *= 1e-6
    weight[5] *= 1e4
    weight[6] = weight[6].abs()
    weight[7] = -weight[7].abs()
    weight[8, 5] = 60.0
    weight[9, : columns // 2] = 0
    weight[10] = torch.where(torch.rand(columns, generator=generator) < 0.05, weight[10], 0)
    return weight


def some_importance(columns: int) -> torch.Tensor:
    return torch.rand(columns, generator=torch.Generator().manual_seed(2)) ** 2 + 0.01


def ggml_rounds(grid: GgmlGrid, weight: torch.Tensor, importance: torch.Tensor) -> np.ndarray:
    kind = libgguf.GGMLQuantizationType[grid.name]
    return libgguf.quantize_rows(weight.numpy(), kind, imatrix=importance.numpy())


def gguf_py_dequantizes(grid: GgmlGrid, data: np.ndarray) -> np.ndarray:
    return quants.dequantize(data, gguf.GGMLQuantizationType[grid.name])


def test_every_format_is_here() -> None:
    assert {grid.name for grid in GRIDS} == set(COSTS)


@every_grid
def test_costs(grid: GgmlGrid) -> None:
    size, block = COSTS[grid.name]
    assert (grid.block_bits, grid.block) == (8 * size, block)
    assert grid.nbytes(3, 512) == 3 * 512 // block * size
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[grid.name]] == (block, size)


@every_grid
def test_unpacks_and_packs_what_ggml_made(grid: GgmlGrid) -> None:
    made = ggml_rounds(grid, awkward_matrix(512), some_importance(512))
    packed = {"data": torch.from_numpy(made)}
    assert packed["data"].numel() == grid.nbytes(12, 512)
    assert grid.dequantize(packed).isfinite().all()
    assert np.array_equal(grid.dequantize(packed).numpy(), gguf_py_dequantizes(grid, made))
    assert torch.equal(grid.pack(grid.unpack(packed))["data"], packed["data"])


@every_grid
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 3), blocks=st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_any_bytes_survive_and_decode_as_in_gguf_py(
    grid: GgmlGrid, seed: int, rows: int, blocks: int
) -> None:
    """Every bit pattern, not only those that ggml writes; equality is exact, not within an ulp."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, blocks * grid.block_bits // 8)
    noise = {"data": torch.randint(256, shape, generator=generator, dtype=torch.uint8)}
    sections = {name: part.clone() for name, part in grid.split(noise).items()}
    for name in grid.half_sections:
        sections[name][..., 1] &= 0xBF  # exponent below 16: no infinity, no NaN
    packed = grid.join(**sections)
    assert torch.equal(grid.pack(grid.unpack(packed))["data"], packed["data"])
    assert np.array_equal(
        grid.dequantize(packed).numpy(), gguf_py_dequantizes(grid, packed["data"].numpy())
    )
