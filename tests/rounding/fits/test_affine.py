"""The fit of MLX's affine types against mlx."""

import pytest
import torch

from bitquilt import qtypes
from bitquilt.qtypes.mlx_affine import Affine
from bitquilt.qtypes.qtype import QuantType
from bitquilt.rounding.fits.family import fit_family
from tests.rounding.fits.blocks import check_awkward_blocks, check_no_block_is_worse, errors
from tests.rounding.fits.mlx_peer import mlx_fields

AFFINE = [qtype for name in qtypes.names("mlx") if isinstance(qtype := qtypes.get(name), Affine)]
every_qtype = pytest.mark.parametrize("qtype", AFFINE, ids=lambda qtype: qtype.name)


@every_qtype
def test_no_group_is_worse_than_mlxs(qtype: QuantType) -> None:
    pytest.importorskip("mlx.core")
    check_no_block_is_worse(qtype, mlx_fields)


@every_qtype
def test_awkward_groups(qtype: QuantType) -> None:
    check_awkward_blocks(qtype)


@every_qtype
def test_huge_weights_stay_finite(qtype: QuantType) -> None:
    weight = torch.randn(2, qtype.block, generator=torch.Generator().manual_seed(0))
    weight *= 3e38 / weight.abs().amax()
    fields = fit_family(qtype, weight, torch.ones_like(weight))
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
    qtype = qtypes.get(f"{bits}bit-g64")
    ours = errors(
        qtype, fit_family(qtype, weight, importance.expand_as(weight)), weight, importance
    )
    theirs = errors(qtype, mlx_fields(qtype, weight, importance), weight, importance)
    assert ours.sum() < share * theirs.sum()
