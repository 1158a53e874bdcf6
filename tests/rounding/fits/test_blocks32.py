"""Fits of ggml's small blocks against ggml, and against every scale there is."""

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
    [
        qtypes.get(name)
        for name in ("TQ1_0", "TQ2_0", "Q2_0", "Q4_0", "Q5_0", "Q4_1", "Q5_1", "Q8_0")
    ],
    ids=lambda qtype: qtype.name,
)


@every_qtype
def test_no_block_is_worse_than_ggmls(qtype: QuantType) -> None:
    check_no_block_is_worse(qtype, ggml_fields)


@every_qtype
def test_awkward_blocks(qtype: QuantType) -> None:
    check_awkward_blocks(qtype)


@pytest.mark.parametrize(
    ("name", "smallest", "largest", "share"),
    [("Q4_0", 1 / 20, 1 / 6, 1.03), ("Q2_0", 1 / 8, 1.05, 1.03), ("TQ1_0", 1 / 20, 1.05, 1.03)],
)
def test_close_to_the_best_of_all_scales(
    name: str, smallest: float, largest: float, share: float
) -> None:
    """They have few enough scales to try a thousand of either sign within the range."""
    qtype = qtypes.get(name)
    weight, importance = random_blocks(qtype.block)
    weight = weight[::7, : qtype.block].contiguous()
    importance = importance[: qtype.block].contiguous()
    found = errors(
        qtype, fit_family(qtype, weight, importance.expand_as(weight)), weight, importance
    )[:, 0]
    reach = weight.abs().amax(1, keepdim=True)
    best = torch.full_like(found, torch.inf)
    for part in torch.linspace(smallest, largest, 1000):
        for scale in (part * reach, -part * reach):
            scale = scale.half().float()
            level = (weight / scale).round().clamp(qtype.low, qtype.high) * scale
            best = torch.minimum(best, ((level - weight).double().square() * importance).sum(1))
    assert (found.sum() / best.sum()) < share
