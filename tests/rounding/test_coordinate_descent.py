"""Coordinate descent only ever helps."""

import pytest

from bitquilt import qtypes
from bitquilt.rounding.coordinate_descent import descend
from bitquilt.rounding.gptq import gptq
from bitquilt.rounding.group_quantizer import group_quantizer_of
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.row_batches import Rows
from tests.rounding.inputs import cost, factor_of, second_moment, weights


@pytest.mark.parametrize("name", ["Q2_K", "IQ4_XS", "3bit-g64", "mxfp4", "mxfp8"])
def test_no_row_gets_worse(name):
    qtype, weight = qtypes.get(name), weights(16, 512)
    factor = factor_of(second_moment(512))
    piece = Rows(qtype, weight, fit(qtype, weight, factor.importance[0]))
    quantizer = group_quantizer_of([[piece]], factor.groups)
    ordered = factor.ordered(weight.T.unsqueeze(0))
    codes, levels, before = gptq(ordered, quantizer, factor)
    codes_before = codes.clone()
    descend(ordered, codes, levels, quantizer, factor)
    after = cost((ordered - levels)[0].T, factor.hessian[0])
    assert (after <= before[0] + 1e-5 * before.mean()).all()
    assert after.sum() < 0.99 * before.sum()
    assert (codes != codes_before).any()
