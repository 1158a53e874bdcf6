"""Fits of ggml's blocks of 32 against ggml, and against every scale there is."""

import pytest
import torch

from bitquilt import qtypes
from bitquilt.qtypes.qtype import QuantType
from bitquilt.rounding.fits.family import fit_family
from tests.rounding.fits.blocks import (
    check_awkward_blocks,
    check_no_block_is_worse,
    errors,
    ggml_fields,
    random_blocks,
)

every_qtype = pytest.mark.parametrize(
    "qtype",
    [qtypes.get(name) for name in ("Q4_0", "Q5_0", "Q4_1", "Q5_1", "Q8_0")],
    ids=lambda qtype: qtype.name,
)


@every_qtype
def test_no_block_is_worse_than_ggmls(qtype: QuantType) -> None:
    check_no_block_is_worse(qtype, ggml_fields)


@every_qtype
def test_awkward_blocks(qtype: QuantType) -> None:
    check_awkward_blocks(qtype)


def test_close_to_the_best_of_all_scales() -> None:
    """Q4_0 has few enough scales to try each half-precision number within its range."""
    qtype = qtypes.get("Q4_0")
    weight, importance = random_blocks(32)
    weight = weight[::7, :32].contiguous()
    importance = importance[:32].contiguous()
    found = errors(
        qtype, fit_family(qtype, weight, importance.expand_as(weight)), weight, importance
    )[:, 0]
    reach = weight.abs().amax(1, keepdim=True)
    best = torch.full_like(found, torch.inf)
    for part in torch.linspace(1 / 20, 1 / 6, 1000):
        for scale in (part * reach, -part * reach):
            scale = scale.half().float()
            level = (weight / scale).round().clamp(-8, 7) * scale
            best = torch.minimum(best, ((level - weight).double().square() * importance).sum(1))
    assert (found.sum() / best.sum()) < 1.03
