"""Nearest rounding of every type: what must hold whatever the format."""

import pytest
import torch

from bitquilt import qtypes
from bitquilt.errors import UserError
from bitquilt.qtypes.ggml import GgmlQuantType
from bitquilt.rounding.nearest import fit

every_qtype = pytest.mark.parametrize(
    "qtype", [qtypes.get(name) for name in qtypes.names()], ids=lambda qtype: qtype.name
)


def awkward_matrix(columns: int = 256) -> torch.Tensor:
    """Rows of every kind that trips quantizers: zeros, constants, tiny, large, outliers."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(12, columns, generator=generator)
    weight[0] = 0
    weight[1] = 0.3
    weight[2] = -0.3
    weight[3] *= 1e-30
    weight[4] *= 1e-6
    weight[5] *= 1e4
    weight[6] = weight[6].abs()
    weight[7] = -weight[7].abs()
    weight[8, 5] = 60.0
    weight[9, : columns // 2] = 0
    weight[10] = torch.where(torch.rand(columns, generator=generator) < 0.05, weight[10], 0)
    return weight


def some_importance(columns: int = 256) -> torch.Tensor:
    return torch.rand(columns, generator=torch.Generator().manual_seed(2)) ** 2 + 0.01


@every_qtype
def test_stored_as_it_was_fitted(qtype):
    weight = awkward_matrix()
    fields = fit(qtype, weight, some_importance())
    packed = qtype.pack(fields)
    assert sum(part.nbytes for part in packed.values()) == qtype.nbytes(12, 256)
    stored = qtype.unpack(packed)
    assert stored.keys() == fields.keys()
    for name, field in stored.items():
        assert field.dtype == fields[name].dtype, name
        assert torch.equal(field, fields[name]), name
    assert qtype.dequantize(packed).isfinite().all()


@every_qtype
def test_importance_helps(qtype):
    weight, importance = torch.randn(8, 512), some_importance(512)
    if qtype.name in ("BF16", "F32"):
        pytest.skip("nothing to fit")

    def error(given):
        return ((qtype.decode(fit(qtype, weight, given)) - weight).square() * importance).sum()

    assert error(importance) < error(None) * 1.001


@every_qtype
def test_a_dead_input_does_no_harm(qtype):
    """An importance of zero, everywhere or in places, must not yield NaN."""
    importance = some_importance()
    importance[:100] = 0
    for dead in (importance, torch.zeros(256)):
        assert qtype.decode(fit(qtype, awkward_matrix(), dead)).isfinite().all()


@every_qtype
def test_rows_can_be_permuted_before_or_after(qtype):
    weight, importance = awkward_matrix(), some_importance()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    before = qtype.pack(fit(qtype, weight[order], importance))
    after = qtype.pack(fit(qtype, weight, importance))
    assert all(torch.equal(before[name], part[order]) for name, part in after.items())


@pytest.mark.parametrize(
    "qtype",
    [
        g
        for name in qtypes.names("gguf")
        if isinstance(g := qtypes.get(name), GgmlQuantType) and g.half_sections
    ],
    ids=lambda g: g.name,
)
@pytest.mark.parametrize("largest", [1e12, 1e25])
def test_weights_out_of_range_are_refused(qtype, largest):
    weight = awkward_matrix()
    weight[5, 7] = largest
    with pytest.raises(UserError, match=f"{qtype.name} .* give this matrix the type BF16"):
        fit(qtype, weight, None)


@every_qtype
@pytest.mark.parametrize("largest", [1e6, 1e7, 1e8])
def test_large_weights_are_refused_or_held(qtype, largest):
    """Formats reach to between 65504 and 2.7e8."""
    weight = awkward_matrix()
    weight[5, 7] = largest
    try:
        decoded = qtype.decode(fit(qtype, weight, None))
    except UserError:
        return
    assert decoded[5, 7] == pytest.approx(largest, rel=0.5)


def test_a_float_out_of_range_is_refused():
    with pytest.raises(UserError, match="give this matrix the type F32"):
        fit(qtypes.get("BF16"), torch.tensor([[3.4028e38]]), None)


@pytest.mark.parametrize("name", ["Q4_K", "IQ2_S"])
def test_a_row_that_does_not_fit_is_refused(name):
    with pytest.raises(UserError, match="blocks of 256 and cannot take a row of 576"):
        fit(qtypes.get(name), torch.zeros(2, 576), None)
