"""Weights that were trained for a grid, and ordinary ones."""

import pytest
import torch

from bitquilt import qtypes
from bitquilt.models.lattice import LATTICES, lattice_of, scales_on
from bitquilt.rounding.fits.family import fit_family
from bitquilt.rounding.nearest import fit
from tests.ggml import ggml_dequantizes, ggml_quantizes

BY_NAME = {lattice.name: lattice for lattice in LATTICES}
MATRICES, ROWS, COLUMNS = 1000, 2, 256


def bent(name: str, matrices: int, spread: float, seed: int = 0) -> torch.Tensor:
    """Matrices [M, R, C] on a lattice, rounded to BF16, their codes about that far from zero."""
    lattice, generator = BY_NAME[name], torch.Generator().manual_seed(seed)
    levels = torch.tensor([code for m in (0.0, *lattice.magnitudes) for code in (m, -m)])
    levels = levels[(levels >= lattice.low) & (levels <= lattice.high)]
    shape = (matrices, ROWS, COLUMNS // lattice.block, lattice.block)
    wanted = torch.randn(shape, generator=generator) * spread
    codes = levels[(wanted.unsqueeze(-1) - levels).abs().argmin(-1)]
    scale = torch.rand((*shape[:-1], 1), generator=generator) * 0.01 + 0.001
    scale = scale.half().float() * torch.where(scale > 0.005, 1, -1)
    if lattice.powers_only:
        scale = torch.exp2(scale.abs().log2().round())
    return (codes * scale).reshape(matrices, ROWS, COLUMNS).bfloat16().float()


def ordinary(matrices: int, power: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn((matrices, ROWS, COLUMNS), generator=generator) ** power * 0.02
    return weights.bfloat16().float()


def on(matrices: torch.Tensor, name: str) -> torch.Tensor:
    """The share of each matrix's blocks that lie on a lattice."""
    _, found = scales_on(matrices.reshape(len(matrices), -1, BY_NAME[name].block), BY_NAME[name])
    return found.float().mean((1, 2))


@pytest.mark.parametrize(
    ("name", "spread"),
    [("Q4_0", 1.5), ("Q4_0", 4.0), ("Q2_0", 0.8), ("MXFP4", 2.0), ("TQ1_0", 0.8)],
)
def test_every_bent_matrix_is_found_and_no_ordinary_one(name, spread):
    matrices = bent(name, MATRICES, spread)
    assert (on(matrices, name) == 1).all()
    assert {lattice_of(matrix).name for matrix in matrices[:20]} == {name}
    for power in (1, 3):
        assert (on(ordinary(MATRICES, power), name) == 0).all()
    assert lattice_of(ordinary(1, 1)[0]) is None


def test_zeros_are_no_lattice_and_some_strange_blocks_do_not_hide_one():
    assert lattice_of(torch.zeros(4, COLUMNS)) is None
    matrix = bent("Q4_0", 50, 4.0).flatten(0, 1)
    matrix[:2] = torch.randn(2, COLUMNS)
    assert lattice_of(matrix).name == "Q4_0"
    matrix[:4] = torch.randn(4, COLUMNS)
    assert lattice_of(matrix) is None


@pytest.mark.parametrize("spread", [1.5, 4.0])
@pytest.mark.parametrize("name", ["Q4_0", "4bit-g32"])
def test_the_steps_of_a_bent_lattice_are_recovered(name, spread):
    """Nearest rounding, as ggml's, puts the furthest weight on the lowest code."""
    weight = bent("Q4_0", 20, spread).flatten(0, 1)
    qtype = qtypes.get(name)
    generator = torch.Generator().manual_seed(2)
    importance = torch.rand(weight.shape, generator=generator).square() + 0.01
    ours = qtype.dequantize(qtype.pack(fit_family(qtype, weight, importance)))
    theirs = torch.from_numpy(ggml_dequantizes("Q4_0", ggml_quantizes("Q4_0", weight.numpy())))
    error, nearest = ((each - weight).square().sum() for each in (ours, theirs))
    assert error < nearest / 100
    assert ((ours - weight).abs() <= 0.012 * weight.abs() + 1e-5).float().mean() > 0.99


@pytest.mark.parametrize(
    ("lattice", "name"),
    [
        *(("Q2_0", "Q2_0"), ("Q2_0", "2bit-g64"), ("MXFP4", "MXFP4"), ("MXFP4", "mxfp4")),
        *(("TQ1_0", "TQ1_0"), ("TQ1_0", "TQ2_0"), ("TQ1_0", "2bit-g64")),
    ],
)
def test_ternary_weights_and_floats_keep_theirs(lattice, name):
    weight = bent(lattice, 20, 1.0).flatten(0, 1)
    qtype = qtypes.get(name)
    kept = qtype.dequantize(qtype.pack(fit(qtype, weight, None)))
    assert (kept - weight).square().mean() < 1e-4 * weight.square().mean()
