"""Fits of the codebook i-quants, against ggml's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bitquilt.errors import UserError
from bitquilt.qtypes.iquants import Codebook
from bitquilt.qtypes.qtype import registered
from bitquilt.rounding.fits.iquants import nearest_scales
from bitquilt.rounding.nearest import fit
from tests.rounding.fits.blocks import (
    awkward_matrix,
    check_fields,
    errors,
    ggml_fields,
    random_blocks,
    real_blocks,
)

QTYPES = [qtype for qtype in registered().values() if isinstance(qtype, Codebook)]


def gaussian() -> Tensor:
    return 0.02 * torch.randn(16, 512, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
@pytest.mark.parametrize("blocks", [random_blocks, real_blocks])
def test_better_than_ggml(qtype: Codebook, blocks: Callable[[int], tuple[Tensor, Tensor]]) -> None:
    weight, importance = blocks(qtype.block)
    fields = fit(qtype, weight, importance)
    check_fields(qtype, fields)
    ours = errors(qtype, fields, weight, importance)
    theirs = errors(qtype, ggml_fields(qtype, weight, importance), weight, importance)
    assert ours.sum() < 0.95 * theirs.sum()
    assert (ours > theirs).float().mean() < 0.03


@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
def test_awkward_blocks(qtype: Codebook) -> None:
    check_fields(qtype, fit(qtype, awkward_matrix(qtype.block), None))


@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
def test_rows_are_independent(qtype: Codebook) -> None:
    weight = gaussian()
    whole, part = fit(qtype, weight, None), fit(qtype, weight[5:7], None)
    assert all(torch.equal(whole[name][5:7], part[name]) for name in whole)


@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1e4])
def test_any_size_of_weights(qtype: Codebook, scale: float) -> None:
    decoded = qtype.decode(fit(qtype, gaussian() * scale, None))
    assert decoded.isfinite().all()
    assert decoded.abs().max() <= 0.2 * scale


@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
@pytest.mark.parametrize("weight", [1e30, float("inf"), float("nan")])
def test_weights_out_of_range_are_refused(qtype: Codebook, weight: float) -> None:
    matrix = gaussian()
    matrix[2, 3] = weight
    with pytest.raises(UserError, match="BF16"):
        fit(qtype, matrix, None)


def test_scales_reach_the_steps_they_can_say() -> None:
    steps = 0.01 * torch.tensor([[[31.0, 29, 17, 15, 9, 5, 3, 1]]])
    units, scales = nearest_scales(steps)
    torch.testing.assert_close(units * (2 * scales + 1), steps)
