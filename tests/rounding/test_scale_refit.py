"""The refit of stored floats against least squares in double precision."""

import pytest
import torch

from bitquilt import qtypes
from bitquilt.rounding import scale_refit
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.scale_refit import refit
from tests.rounding.inputs import cost, second_moment, weights


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q6_K", "IQ4_XS", "Q5_1", "4bit-g64", "2bit-g32"])
def test_no_row_is_worse_and_codes_stay(name):
    qtype, weight, hessian = qtypes.get(name), weights(12, 512), second_moment(512)
    before = fit(qtype, weight, hessian.diagonal())
    after = refit(qtype, before, weight, hessian[None])
    for field in before.keys() - {"d", "dmin", "m", "scales", "biases"}:
        assert torch.equal(before[field], after[field])
    assert after.keys() == before.keys()
    old = cost(weight - qtype.decode(before), hessian)
    new = cost(weight - qtype.decode(after), hessian)
    assert (new <= old * (1 + 1e-4)).all()
    assert new.sum() < old.sum()
    stored = qtype.unpack(qtype.pack(after))
    assert all(torch.equal(stored[name], after[name]) for name in after)


@pytest.mark.parametrize("name", ["Q4_1", "Q4_K"])
def test_rows_are_solved_alike_however_few_together(name, monkeypatch):
    qtype, weight, hessian = qtypes.get(name), weights(12, 512), second_moment(512)
    before = fit(qtype, weight, hessian.diagonal())
    whole = refit(qtype, before, weight, hessian[None])
    monkeypatch.setattr(scale_refit, "SYSTEMS", {"cpu": 5 * 32**2})
    parts = refit(qtype, before, weight, hessian[None])
    assert all(torch.equal(parts[field], whole[field]) for field in whole)


@pytest.mark.parametrize("most", [1 << 26, 10 * 32**2, 3 * 32**2])
def test_inputs_are_refitted_together_as_alone(most, monkeypatch):
    """As many rows of each: some inputs go together, or parts of one."""
    qtype, hessians = (
        qtypes.get("Q4_1"),
        torch.stack([second_moment(512, seed=i) for i in range(3)]),
    )
    weight = weights(3 * 5, 512)
    before = fit(qtype, weight, None)
    monkeypatch.setattr(scale_refit, "SYSTEMS", {"cpu": most})
    found = qtype.decode(refit(qtype, before, weight, hessians))
    for i, hessian in enumerate(hessians):
        rows = slice(5 * i, 5 * i + 5)
        own = {name: field[rows] for name, field in before.items()}
        alone = qtype.decode(refit(qtype, own, weight[rows], hessian[None]))
        assert torch.allclose(found[rows], alone, rtol=1e-3, atol=1e-4)


def test_finds_the_least_squares_solution():
    """Rows made of a type's own levels times another scale are recovered to half precision."""
    qtype, hessian = qtypes.get("Q4_1"), second_moment(64)
    fields = fit(qtype, weights(3, 64), None)
    wanted = fields | {"d": fields["d"] * 1.25, "m": fields["m"] - 0.1}
    weight = qtype.decode(wanted)
    found = refit(qtype, fields, weight, hessian[None])
    assert torch.allclose(found["d"], wanted["d"], rtol=5e-3)
    assert torch.allclose(found["m"], wanted["m"], rtol=5e-3)


def test_qtypes_without_floats_and_blocks_of_zeros_pass_through():
    weight, hessian = weights(3, 64), second_moment(64)
    mxfp4 = qtypes.get("mxfp4")
    fields = fit(mxfp4, weight, None)
    assert refit(mxfp4, fields, weight, hessian[None]) is fields
    zero = torch.zeros(2, 64)
    qtype = qtypes.get("Q4_0")
    after = refit(qtype, fit(qtype, zero, None), zero, hessian[None])
    assert all(field.isfinite().all() for field in after.values())
