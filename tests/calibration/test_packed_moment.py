"""What is read back is the moment that was packed, as nearly as float16 holds correlations."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitquilt.calibration.packed_moment import DIAGONAL, pack_moment, packed_bytes, unpack_moment


def moment(columns: int) -> torch.Tensor:
    """Of inputs whose scales differ by many orders of magnitude."""
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(64, columns, generator=generator) + 0.5
    x *= torch.randn(columns, generator=generator).mul(3).exp()
    h = x.T @ x
    return (h + h.T) / 2


@given(st.integers(1, 70))
def test_the_diagonal_is_exact_and_the_rest_near(columns):
    h = moment(columns)
    packed = pack_moment("own", h)
    again = unpack_moment("own", packed.__getitem__)
    assert torch.equal(again.diagonal(), h.diagonal())
    assert torch.equal(again, again.T)
    roots = h.diagonal().sqrt()
    apart = (again - h).abs() / roots / roots[:, None]
    assert apart.max() <= 2**-11
    assert sum(part.nbytes for part in packed.values()) == packed_bytes(columns)


def test_about_a_quarter_of_the_bytes():
    assert packed_bytes(14336) < 0.27 * 4 * 14336**2


def test_an_input_that_is_always_zero_stays_so():
    h = moment(8)
    h[3], h[:, 3] = 0, 0
    again = unpack_moment("own", pack_moment("own", h).__getitem__)
    assert again.isfinite().all()
    assert not again[3].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen_again(value):
    h = moment(8)
    h[2, 2] = value
    packed = pack_moment("own", h)
    assert not packed[f"own/{DIAGONAL}"].isfinite().all()
    assert not unpack_moment("own", packed.__getitem__).isfinite().all()
