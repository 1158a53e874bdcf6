"""The fit of MXFP4 against mlx and ggml."""

import pytest
import torch

from bitquilt import qtypes
from bitquilt.rounding.fits.family import fit_family
from tests.rounding.fits.blocks import check_awkward_blocks, check_no_block_is_worse, ggml_fields
from tests.rounding.fits.mlx_peer import mlx_fields

MXFP4 = qtypes.get("mxfp4")


def test_no_group_is_worse_than_mlxs() -> None:
    pytest.importorskip("mlx.core")
    check_no_block_is_worse(MXFP4, mlx_fields)


def test_no_block_is_worse_than_ggmls() -> None:
    check_no_block_is_worse(qtypes.get("MXFP4"), ggml_fields)


def test_awkward_groups() -> None:
    check_awkward_blocks(MXFP4, constant=0.03)  # it has powers of two only


@pytest.mark.parametrize("magnitude", [1e-45, 1e-39, 3e38])
def test_the_ends_of_the_range(magnitude: float) -> None:
    fields = fit_family(MXFP4, torch.full((1, 32), magnitude), torch.ones(1, 32))
    assert -127 <= fields["exponents"].item() <= 127
    assert MXFP4.decode(fields).isfinite().all()
