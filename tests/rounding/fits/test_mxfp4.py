"""The fits of MXFP4 and MXFP8 against mlx and ggml."""

import pytest
import torch

from bitquilt import qtypes
from bitquilt.qtypes.qtype import ScalarQuantType
from bitquilt.rounding.fits.family import fit_family
from tests.rounding.fits.blocks import check_awkward_blocks, check_no_block_is_worse, ggml_fields
from tests.rounding.fits.mlx_peer import mlx_fields

MICROSCALED = [qtypes.get(name) for name in ("mxfp4", "mxfp8")]
every_qtype = pytest.mark.parametrize("qtype", MICROSCALED, ids=lambda qtype: qtype.name)


@every_qtype
def test_no_group_is_worse_than_mlxs(qtype: ScalarQuantType) -> None:
    pytest.importorskip("mlx.core")
    check_no_block_is_worse(qtype, mlx_fields, may_equal=qtype.name == "mxfp8")


def test_no_block_is_worse_than_ggmls() -> None:
    check_no_block_is_worse(qtypes.get("MXFP4"), ggml_fields)


@every_qtype
def test_awkward_groups(qtype: ScalarQuantType) -> None:
    check_awkward_blocks(qtype, constant=0.03)  # they have powers of two only


@every_qtype
@pytest.mark.parametrize("magnitude", [1e-45, 1e-39, 3e38])
def test_the_ends_of_the_range(qtype: ScalarQuantType, magnitude: float) -> None:
    fields = fit_family(qtype, torch.full((1, 32), magnitude), torch.ones(1, 32))
    assert -127 <= fields["exponents"].item() <= 127
    assert qtype.decode(fields).isfinite().all()
