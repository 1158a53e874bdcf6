"""Fits of the K-quants against ggml, and against what no fit can beat."""

import pytest
import torch

from bitquilt import qtypes
from bitquilt.qtypes.kquants import Signed, WithMins
from bitquilt.qtypes.qtype import QuantType
from bitquilt.rounding.fits.family import fit_family
from bitquilt.rounding.fits.kquants import pick_best
from tests.rounding.fits.blocks import (
    awkward_matrix,
    check_awkward_blocks,
    check_fields,
    errors,
    ggml_fields,
    random_blocks,
    real_blocks,
)

# Weighted error as a share of ggml's, the mean over super-blocks: of random and of real ones.
SHARES = {
    "Q2_K": (0.88, 0.94),
    "Q3_K": (0.99, 0.99),
    "Q4_K": (0.945, 0.97),
    "Q5_K": (0.88, 0.94),
    "Q6_K": (0.86, 0.92),
}
every_qtype = pytest.mark.parametrize(
    "qtype", [qtypes.get(name) for name in SHARES], ids=lambda qtype: qtype.name
)
with_mins = pytest.mark.parametrize(
    "qtype", [qtypes.get(name) for name in ("Q2_K", "Q4_K", "Q5_K")], ids=lambda qtype: qtype.name
)


@every_qtype
@pytest.mark.parametrize("even", [False, True], ids=["importance", "even"])
def test_error_against_ggmls(qtype: QuantType, even: bool) -> None:
    """Lower on average by a clear margin; higher on few super-blocks, and there by little."""
    for share, blocks in zip(SHARES[qtype.name], (random_blocks, real_blocks), strict=True):
        weight, importance = blocks(qtype.block)
        if even:
            importance = torch.ones_like(importance)
        fields = fit_family(qtype, weight, importance.expand_as(weight))
        check_fields(qtype, fields)
        theirs = errors(qtype, ggml_fields(qtype, weight, importance), weight, importance)
        ratios = errors(qtype, fields, weight, importance) / theirs
        assert ratios.mean() < share
        assert (ratios > 1).double().mean() < 0.08
        assert ratios.max() < 1.25


@every_qtype
def test_awkward_blocks(qtype: QuantType) -> None:
    check_awkward_blocks(qtype)


@every_qtype
def test_codes_are_nearest(qtype: WithMins | Signed) -> None:
    """No other code of any weight is closer on the levels as they are stored."""
    weight, importance = random_blocks(qtype.block)
    weight = weight[::9]
    fields = fit_family(qtype, weight, importance.expand_as(weight))
    missed = (qtype.decode(fields) - weight).abs()
    for step in (-1, 1):
        codes = (fields["codes"].int() + step).clamp(qtype.low, qtype.high)
        other = qtype.decode(fields | {"codes": codes.to(fields["codes"].dtype)})
        assert (missed <= (other - weight).abs() + 1e-6 * weight.abs()).all()


@with_mins
def test_weights_above_zero_take_a_negative_dmin(qtype: WithMins) -> None:
    """Positive weights are as easy as negative ones, which ggml's own fit cannot say."""
    weight, importance = random_blocks(qtype.block)
    weight = weight[:28] + 1
    above = fit_family(qtype, weight, importance.expand_as(weight))
    below = fit_family(qtype, -weight, importance.expand_as(weight))
    assert (above["dmin"] < 0).all()
    found = errors(qtype, above, weight, importance).sum()
    assert found < 1.1 * errors(qtype, below, -weight, importance).sum()
    assert (
        found
        < 0.5 * errors(qtype, ggml_fields(qtype, weight, importance), weight, importance).sum()
    )


@every_qtype
def test_too_large_for_half_precision_is_infinite(qtype: QuantType) -> None:
    weight = awkward_matrix(qtype.block) * 1e9
    fields = fit_family(qtype, weight, torch.ones_like(weight))
    assert not fields["d"].isfinite().all()


def test_pick_best() -> None:
    """The first of the largest, per place; what is not a number never wins."""
    gains = torch.tensor([[1.0, torch.nan, 2.0], [3.0, -1.0, 2.0]])
    table = torch.tensor([[10.0, 20.0, 30.0], [11.0, 21.0, 31.0]])
    best, entry = pick_best(gains, table)
    assert best.tolist() == [3.0, -1.0, 2.0]
    assert entry.tolist() == [11.0, 21.0, 30.0]
