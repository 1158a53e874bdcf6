"""Fits of the codebook i-quants, against ggml's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gguf import quants
from torch import Tensor

from bitquilt import qtypes
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


@pytest.mark.parametrize("name", ["IQ1_S", "IQ1_M"])
@pytest.mark.parametrize("blocks", [random_blocks, real_blocks])
def test_better_than_all_patterns_at_plain_units(
    name: str, blocks: Callable[[int], tuple[Tensor, Tensor]]
) -> None:
    """The unit by root mean squares; then the best scale, shift and pattern of all of gguf-py's.

    A fit compares a few patterns, so that a row whose unit happens to be right can be worse.
    """
    weight, importance = blocks(256)
    weight, importance = weight[::9, :512].contiguous(), importance[:512].contiguous()
    qtype = qtypes.get(name)
    assert isinstance(qtype, Codebook)
    fields = fit(qtype, weight, importance)
    quants.IQ1_S.init_grid()
    grid = torch.from_numpy(quants.IQ1_S.grid[0, 0])
    shifted = [grid + 1 / 8, grid - 1 / 8]
    # IQ1_M has a shift for each vector, IQ1_S for each sub-block
    choices = [torch.cat(shifted)] if name == "IQ1_M" else shifted
    # [R, C] -> [R, B, sub-blocks, vectors, 8]
    shape = (-1, 256 // qtype.sub_block, qtype.sub_block // 8, 8)
    cut, shares = (each.unflatten(-1, shape) for each in (weight, importance))
    largest = cut.square().mean((-1, -2)).sqrt().amax(-1, keepdim=True)
    found = torch.full(cut.shape[:3], torch.inf)
    for scale in range(1, 16, 2):
        step = (1.3 * largest / 15 * scale)[..., None, None]
        for levels in choices:
            square = shares @ levels.T.square() * step.square()
            costs = square - 2 * step * ((cut * shares) @ levels.T)
            found = torch.minimum(found, costs.amin(-1).sum(-1))
    plain = (weight.square() * importance).sum(1) + found.sum((1, 2))
    ours = errors(qtype, fields, weight, importance).sum(1)
    assert (ours < 1.03 * plain).all()
    assert ours.sum() < 0.97 * plain.sum()


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
    units, scales = nearest_scales(steps, 15)
    torch.testing.assert_close(units * (2 * scales + 1), steps)
    steps = 0.01 * torch.tensor([[[15.0, 13, 11, 9, 7, 5, 3, 1]]])
    units, scales = nearest_scales(steps, 7)
    torch.testing.assert_close(units * (2 * scales + 1), steps)
