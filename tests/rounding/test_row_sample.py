"""Estimates from a few rows against sums over all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitquilt.rounding import row_sample
from bitquilt.rounding.row_sample import sample_rows


@given(st.integers(1, 4000), st.integers(0, 99))
def test_costs_in_proportion_to_the_sizes_are_summed_exactly(count, seed):
    sizes = torch.rand(count, generator=torch.Generator().manual_seed(seed)) ** 4
    sample = sample_rows(sizes)
    costs = 3 * sizes[sample.rows].double()
    assert sample.total(costs) == pytest.approx(3 * float(sizes.double().sum()), rel=1e-6)
    assert sample.rows.tolist() == sorted(set(sample.rows.tolist()))


def test_rows_that_are_off_by_other_shares_are_estimated_well():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randn(8192, generator=generator).exp() ** 2
    costs = sizes.double() * (1 + 0.3 * torch.randn(8192, generator=generator).double())
    sample = sample_rows(sizes)
    assert len(sample.rows) <= 8192 // row_sample.SHARE
    assert sample.total(costs[sample.rows]) == pytest.approx(float(costs.sum()), rel=0.03)


def test_of_few_rows_all_are_taken():
    sample = sample_rows(torch.rand(100, generator=torch.Generator().manual_seed(0)))
    assert sample.rows.tolist() == list(range(100))
    assert sample.stands_for.tolist() == [1.0] * 100


def test_where_nothing_tells_rows_apart_any_stand_for_all():
    sample = sample_rows(torch.zeros(500), 100)
    assert len(sample.rows) == 100
    assert sample.total(torch.ones(100)) == pytest.approx(500)
