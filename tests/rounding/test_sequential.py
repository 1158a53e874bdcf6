"""The corrected matrix against least squares over explicit tokens, in double precision."""

import pytest
import torch
from tests.rounding.inputs import weights

from bitquilt.rounding.factor import DAMPING, factorize
from bitquilt.rounding.sequential import FRACTION, Drift, corrected

TOKENS, ROWS, COLUMNS = 400, 6, 32


@pytest.fixture
def text():
    """W, x, x̂ and h − ĥ."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator)
    x = torch.randn(TOKENS, COLUMNS, generator=generator) @ mixing
    seen = x + torch.randn(TOKENS, COLUMNS, generator=generator) + 0.1 * x.roll(1, 1)
    lacking = 0.3 * seen[:, :ROWS] + torch.randn(TOKENS, ROWS, generator=generator)
    return weights(ROWS, COLUMNS), x, seen, lacking


def least_squares(weight, x, seen, wanted):
    """V of least ‖wanted − V x̂‖² + damping ‖V − W‖², over tokens and damping as more rows."""
    weight, seen, wanted = weight.double(), seen.double(), wanted.double()
    damping = DAMPING * seen.square().sum(0).mean()
    rows = torch.cat([seen, damping.sqrt() * torch.eye(COLUMNS, dtype=torch.float64)])
    goals = torch.cat([wanted, damping.sqrt() * weight.T])
    return torch.linalg.lstsq(rows, goals).solution.T


def silent(line):
    raise AssertionError(line)


@pytest.mark.parametrize("added", [True, False])
def test_correction_is_a_share_of_the_way_to_least_squares(text, added):
    weight, x, seen, lacking = text
    drift = Drift.of(x, seen, lacking if added else None)
    factor = factorize(drift.second_moment, "x", silent)
    found = corrected(weight, drift.shift(weight), factor)
    best = least_squares(weight, x, seen, x @ weight.T + (lacking if added else 0))
    expected = weight + FRACTION * (best - weight)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_excess_is_that_of_the_outputs(text):
    weight, x, seen, lacking = (tensor.double() for tensor in text)
    other = weight + 0.1 * weights(ROWS, COLUMNS, seed=5)
    drift = Drift.of(x, seen, lacking)

    def error(matrix):
        return (x @ weight.T + lacking - seen @ matrix.T).square().sum() / TOKENS

    expected = error(other) - error(weight)
    assert drift.excess(other - weight, weight) == pytest.approx(expected.item(), rel=1e-9)


def test_sums_add_up(text):
    weight, x, seen, lacking = text
    whole = Drift.of(x, seen, lacking)
    parts = Drift.of(x[:100], seen[:100], lacking[:100])
    parts += Drift.of(x[100:], seen[100:], lacking[100:])
    torch.testing.assert_close(parts.shift(weight), whole.shift(weight))
    torch.testing.assert_close(parts.second_moment, whole.second_moment)


def test_inputs_that_did_not_move_leave_the_matrix_as_it_is(text):
    weight, x, _, _ = text
    drift = Drift.of(x, x, None)
    factor = factorize(drift.second_moment, "x", silent)
    assert torch.equal(corrected(weight, drift.shift(weight), factor), weight)
