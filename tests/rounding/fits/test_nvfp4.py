"""The fit of NVFP4 against mlx, ggml, and every scale there is."""

import pytest
import torch

from bitquilt import qtypes
from bitquilt.rounding.fits.family import fit_family
from tests.rounding.fits.blocks import check_awkward_blocks, check_no_block_is_worse, ggml_fields
from tests.rounding.fits.mlx_peer import mlx_fields


def test_no_group_is_worse_than_mlxs() -> None:
    check_no_block_is_worse(qtypes.get("nvfp4"), mlx_fields)


def test_no_block_is_worse_than_ggmls() -> None:
    check_no_block_is_worse(qtypes.get("NVFP4"), ggml_fields)


@pytest.mark.parametrize("name", ["nvfp4", "NVFP4"])
def test_awkward_groups(name: str) -> None:
    check_awkward_blocks(qtypes.get(name), constant=0.03)


@pytest.mark.parametrize("name", ["nvfp4", "NVFP4"])
def test_close_to_the_best_of_all_126_scales(name: str) -> None:
    qtype = qtypes.get(name)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=generator) * torch.logspace(-3, 1, 64).unsqueeze(1)
    importance = torch.rand(64, 64, generator=generator) + 0.1

    def error(fields: dict[str, torch.Tensor]) -> torch.Tensor:
        gap = (qtype.decode(fields) - weight).square() * importance
        return gap.unflatten(1, (-1, 16)).sum(-1)

    found = error(fit_family(qtype, weight, importance))
    best = torch.full_like(found, torch.inf)
    table = torch.tensor(qtype.table)
    for code in range(1, 127):
        scale = qtype.scale(torch.tensor(code))
        codes = ((weight / scale).unsqueeze(-1) - table).abs().argmin(-1).to(torch.uint8)
        scale_codes = torch.full((64, 4), code, dtype=torch.uint8)
        best = torch.minimum(best, error({"codes": codes, "scale_codes": scale_codes}))
    assert (found / best).mean() < 1.02
