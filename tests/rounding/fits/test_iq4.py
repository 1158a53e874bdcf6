"""Fits of the uneven 4-bit formats against ggml, and their lookup against a search."""

import math

import pytest
import torch

from bitquilt import qtypes
from bitquilt.qtypes.iq4 import IQ4_VALUES
from bitquilt.qtypes.mxfp4 import FourBitFloats
from bitquilt.qtypes.mxfp8 import MlxMxFp8
from bitquilt.qtypes.qtype import QuantType
from bitquilt.rounding.fits import iq4, mxfp4
from bitquilt.rounding.tables import LevelTable, level_table
from tests.rounding.fits.blocks import check_awkward_blocks, check_no_block_is_worse, ggml_fields

every_qtype = pytest.mark.parametrize(
    "qtype", [qtypes.get("IQ4_NL"), qtypes.get("IQ4_XS")], ids=lambda qtype: qtype.name
)


@every_qtype
def test_no_block_is_worse_than_ggmls(qtype: QuantType) -> None:
    check_no_block_is_worse(qtype, ggml_fields)


@every_qtype
def test_awkward_blocks(qtype: QuantType) -> None:
    check_awkward_blocks(qtype)


@pytest.mark.parametrize(
    ("table", "values"),
    [
        (iq4.IQ4_TABLE, IQ4_VALUES),
        (mxfp4.MXFP4_TABLE, FourBitFloats.table),
        (level_table(MlxMxFp8()), MlxMxFp8.table),
    ],
)
def test_lookup_finds_the_nearest(table: LevelTable, values: tuple[float, ...]) -> None:
    numbers = torch.linspace(1.3 * table.lowest, 1.3 * table.highest, 10_001)
    some = [value for value in values if not math.isnan(value)]
    expected = (numbers.unsqueeze(1) - torch.tensor(some)).abs().amin(1)
    levels = table.levels(numbers.clone())
    torch.testing.assert_close((levels - numbers).abs(), expected, rtol=0, atol=1e-4)
    assert torch.equal(torch.tensor(values)[table.codes(numbers.clone()).long()], levels)
