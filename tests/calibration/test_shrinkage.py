"""How far Hessians are shrunk, against what rounding errors cost on other text."""

import pytest
import torch

from bitquilt.calibration.shrinkage import (
    FOLDS,
    TRIED_SHARES,
    USUAL_SHARE,
    FoldSum,
    Moments,
    best_share,
    feedback_error,
    shrink_,
)

COLUMNS = 48


def text(tokens, seed, mixing=None):
    """Inputs [tokens, C] of one population, and their second moment."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, COLUMNS, generator=generator)
    x = x if mixing is None else x @ mixing
    return x.T @ x / tokens


def fold(tokens, seed, mixing=None):
    """The same, as a sum over tokens of other weight."""
    return FoldSum(3 * text(tokens, seed, mixing), 3.0)


def mixing(seed=7):
    return torch.randn(COLUMNS, COLUMNS, generator=torch.Generator().manual_seed(seed))


def test_off_diagonals_alone_are_shrunk():
    hessian = text(100, 0, mixing())
    shrunk = shrink_(hessian.clone(), 0.3)
    assert torch.equal(shrunk.diagonal(), hessian.diagonal())
    off = ~torch.eye(COLUMNS, dtype=torch.bool)
    torch.testing.assert_close(shrunk[off], 0.7 * hessian[off])


def test_much_text_of_one_kind_is_trusted():
    folds = [fold(20_000, seed, mixing()) for seed in range(FOLDS)]
    assert best_share(folds) == 0.0


def test_text_whose_columns_hang_together_by_chance_is_not():
    folds = [fold(3 * COLUMNS, seed) for seed in range(FOLDS)]
    assert best_share(folds) == TRIED_SHARES[-1]


def test_domains_that_disagree_are_trusted_less_than_those_that_agree():
    agree = [fold(2_000, seed, mixing()) for seed in range(FOLDS)]
    disagree = [fold(2_000, seed, mixing() + 0.7 * mixing(seed)) for seed in range(FOLDS)]
    assert best_share(disagree) > best_share(agree)


def test_one_fold_alone_cannot_tell():
    assert best_share([fold(100, 0)]) == USUAL_SHARE


def test_the_error_is_that_of_feedback_on_random_roundings():
    """Columns are rounded one by one with feedback; the error is taken under another Hessian."""
    hessian, other = text(400, 1, mixing()), text(400, 2, mixing())
    damped = hessian.double() + 0.03 * hessian.diagonal().mean().double() * torch.eye(COLUMNS)
    upper = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    rows = 4_000
    z = torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    errors = torch.zeros_like(z)
    for j in range(COLUMNS):
        errors[:, j] = z[:, j] - errors[:, :j] @ upper[:j, j] / upper[j, j]
    expected = float(((errors @ other.double()) * errors).sum() / rows)
    root = torch.linalg.cholesky(other)
    found = feedback_error(hessian, 0.0, root * COLUMNS**0.5)  # C probes
    assert found == pytest.approx(expected, rel=0.05)


def test_a_hessian_that_does_not_factorize_is_never_chosen():
    bad = -torch.eye(COLUMNS)
    assert feedback_error(bad, 0.0, torch.eye(COLUMNS)) == float("inf")


def test_moments_are_means_by_weight_over_all_folds():
    x = torch.randn(50, COLUMNS)
    moments = Moments(x)
    for fold in range(FOLDS):
        moments.sums[fold] += (fold + 1) * x.T @ x
        moments.weights[fold] = (fold + 1) * 50
    hessian, share = moments.shrunk()
    torch.testing.assert_close(hessian, shrink_(x.T @ x / 50, share))


def test_an_input_that_no_gradient_reaches_has_a_hessian_of_zeros():
    hessian, share = Moments(torch.ones(4, COLUMNS)).shrunk()
    assert not hessian.any()
    assert share == USUAL_SHARE
