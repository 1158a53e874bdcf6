"""Error feedback against GPTQ as its paper writes it, column by column."""

import pytest
import torch

from bitquilt import qtypes
from bitquilt.rounding.gptq import gptq
from bitquilt.rounding.group_quantizer import group_quantizer_of
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.row_batches import Rows
from tests.rounding.inputs import cost, factor_of, second_moment, weights


def gptq_of_the_paper(weight, levels, low, high, hessian):
    """Frantar et al. 2022, algorithm 1, in double precision: H⁻¹, its upper factor, one column at
    a time; scales are given, one per column.
    """
    weight, steps, offsets = weight.double().clone(), levels[0].double(), levels[1].double()
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian.double()), upper=True)
    rounded = torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        code = ((weight[:, j] - offsets[:, j]) / steps[:, j]).round().clamp(low, high)
        rounded[:, j] = code * steps[:, j] + offsets[:, j]
        error = (weight[:, j] - rounded[:, j]) / upper[j, j]
        weight[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    return rounded.float()


@pytest.mark.parametrize("name", ["Q3_K", "Q4_K", "4bit-g64", "Q4_1"])
def test_equals_gptq_of_the_paper(name):
    qtype, weight, columns = qtypes.get(name), weights(6, 512), 512
    factor = factor_of(second_moment(columns))
    fields = fit(qtype, weight, factor.importance[0])
    lines = qtype.levels(fields)
    spread = columns // lines.steps.shape[1]
    steps = lines.steps.repeat_interleave(spread, 1).T
    offsets = torch.zeros_like(lines.steps) if lines.offsets is None else lines.offsets
    offsets = offsets.repeat_interleave(spread, 1).T
    in_order = [factor.ordered(each.unsqueeze(0))[0].T for each in (steps, offsets)]
    ordered = factor.ordered(weight.T.unsqueeze(0))
    expected = gptq_of_the_paper(ordered[0].T, in_order, qtype.low, qtype.high, factor.hessian[0])

    quantizer = group_quantizer_of([[Rows(qtype, weight, fields)]], factor.groups)
    codes, levels, costs = gptq(ordered, quantizer, factor)
    # ties and the last bits of float32 may send a column elsewhere, and the rest of its row
    same = (levels[0].T - expected).abs() < 1e-4
    assert same.float().mean() > 0.97
    assert torch.allclose(costs[0], cost((ordered - levels)[0].T, factor.hessian[0]), rtol=1e-3)
    papers = cost(ordered[0].T - expected, factor.hessian[0])
    assert torch.allclose(costs.sum(), papers.sum(), rtol=0.02)
    fields = fields | quantizer.fields(qtype, codes[0, factor.groups[0].argsort()])
    decoded = qtype.decode(qtype.unpack(qtype.pack(fields)))
    assert torch.allclose(decoded, factor.restored(levels)[0].T, rtol=1e-5, atol=1e-6)


def test_an_error_free_qtype_stays_error_free():
    qtype, weight = qtypes.get("Q8_0"), weights(4, 64)
    weight = qtype.decode(fit(qtype, weight, None))
    factor = factor_of(second_moment(64))
    quantizer = group_quantizer_of([[Rows(qtype, weight, fit(qtype, weight, None))]], factor.groups)
    _, levels, costs = gptq(factor.ordered(weight.T.unsqueeze(0)), quantizer, factor)
    assert torch.allclose(factor.restored(levels)[0].T, weight, atol=1e-6)
    assert costs.max() < 1e-6
