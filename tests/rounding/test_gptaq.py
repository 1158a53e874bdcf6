"""The corrected matrix against least squares over explicit tokens, in double precision."""

import pytest
import torch

from bitquilt.rounding.gptaq import Drift, corrected
from bitquilt.rounding.hessian import DAMPING
from tests.rounding.inputs import factor_of, weights

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


def counted(x, seen, lacking):
    """Every token counts alike, and no Hessian was shrunk."""
    return Drift.of(x, seen, lacking, torch.ones(len(x)), 1.0)


def halves_of(*text):
    return tuple(counted(*(rows.tensor_split(2)[half] for rows in text)) for half in (0, 1))


def correct(weight, halves):
    factor = factor_of((halves[0] + halves[1]).second_moment)
    return corrected(weight, halves, factor)


def test_halves_that_agree_correct_all_the_way_to_least_squares(text):
    weight, x, seen, lacking = text
    drift = counted(x, seen, lacking)
    best = least_squares(weight, x, seen, x @ weight.T + lacking)
    found = correct(weight, (drift, drift)).double()
    torch.testing.assert_close(found, best, rtol=1e-3, atol=1e-4)


def test_halves_that_differ_correct_a_share_of_the_way(text):
    weight, x, seen, lacking = text
    way = least_squares(weight, x, seen, x @ weight.T + lacking) - weight
    step = correct(weight, halves_of(x, seen, lacking)).double() - weight
    share = (step * way).sum() / way.square().sum()
    assert 0.5 < share < 0.99
    torch.testing.assert_close(step, share * way, rtol=1e-3, atol=1e-4)


def test_noise_is_not_followed(text):
    """What the stream lacks has nothing to do with the input."""
    weight, x, _, _ = text
    lacking = torch.randn(TOKENS, ROWS, generator=torch.Generator().manual_seed(9))
    way = least_squares(weight, x, x, x @ weight.T + lacking) - weight
    step = correct(weight, halves_of(x, x, lacking)).double() - weight
    assert step.norm() < 0.2 * way.norm()


def test_excess_is_that_of_the_outputs(text):
    weight, x, seen, lacking = (tensor.double() for tensor in text)
    other = weight + 0.1 * weights(ROWS, COLUMNS, seed=5)
    drift = counted(x, seen, lacking)

    def error(matrix):
        return (x @ weight.T + lacking - seen @ matrix.T).square().sum() / TOKENS

    expected = error(other) - error(weight)
    assert drift.excess(other - weight, weight, None) == pytest.approx(expected.item(), rel=1e-9)


def test_sums_add_up(text):
    weight, x, seen, lacking = text
    whole, (first, second) = counted(x, seen, lacking), halves_of(x, seen, lacking)
    torch.testing.assert_close((first + second).shift(weight), whole.shift(weight))
    torch.testing.assert_close((first + second).second_moment, whole.second_moment)


def test_inputs_that_did_not_move_leave_the_matrix_as_it_is(text):
    weight, x, _, _ = text
    assert torch.equal(correct(weight, halves_of(x, x, torch.zeros(TOKENS, 1))), weight)
