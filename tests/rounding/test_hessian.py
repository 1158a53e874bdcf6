"""The factorization: what it multiplies to, what it does where there is none."""

import pytest
import torch

from bitquilt import qtypes
from bitquilt.errors import UserError
from bitquilt.rounding.hessian import COLUMN_GROUP, DAMPING, factorize
from bitquilt.rounding.round_matrices import RoundingJob, round_matrices
from bitquilt.runtime.progress import Silent
from tests.progress import Recorded
from tests.rounding.inputs import cost, factor_of, second_moment, weights


def test_factor_multiplies_to_the_damped_hessian_in_order():
    hessian = second_moment(64)
    factor = factor_of(hessian)
    assert torch.allclose(factor.upper @ factor.upper.mT, factor.hessian, rtol=1e-4, atol=1e-5)
    damped = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(64)
    assert torch.allclose(factor.natural[0], damped, rtol=1e-5)
    sums = damped.diagonal().unflatten(0, (-1, COLUMN_GROUP)).sum(1)[factor.groups[0]]
    assert torch.equal(sums, sums.sort(descending=True).values)


def test_order_and_back():
    factor = factor_of(second_moment(64))
    columns = weights(64, 3).unsqueeze(0)
    assert torch.equal(factor.restored(factor.ordered(columns)), columns)


def test_cost_is_the_quadratic_form():
    factor = factor_of(second_moment(288))
    errors = weights(5, 288)
    expected = cost(errors, factor.natural[0])
    assert torch.allclose(
        factor.cost(factor.ordered(errors.T.unsqueeze(0)))[0], expected, rtol=1e-4
    )


def test_importance_lies_between_the_diagonals():
    factor = factor_of(second_moment(64))
    importance = factor.importance[0]
    assert (importance <= factor.natural[0].diagonal() * (1 + 1e-5)).all()
    assert (importance >= 1 / torch.linalg.inv(factor.natural[0]).diagonal() * (1 - 1e-3)).all()


def test_a_hessian_that_does_not_factorize_is_damped_more_and_named():
    said = []
    indefinite = second_moment(32)
    indefinite[0, 1] = indefinite[1, 0] = 3 * indefinite.diagonal().max()
    names = ["model.layers.2.mlp.down_proj", "model.layers.3.mlp.down_proj"]
    factor = factorize(torch.stack([second_moment(32), indefinite]), names, Recorded(lines=said))
    assert len(said) == 1
    assert "model.layers.3.mlp.down_proj" in said[0]
    assert factor.upper.isfinite().all()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_hessian_that_is_not_finite_is_refused_by_name(wrong):
    hessian = second_moment(32)
    hessian[3, 5] = hessian[5, 3] = wrong
    hessians = torch.stack([second_moment(32), hessian])
    with pytest.raises(UserError, match=r"2 of the 1024 numbers in the Hessian of mine are not"):
        factorize(hessians, ["other", "mine"], Silent())


def test_a_hessian_that_never_factorizes_is_refused_by_name():
    """Damping, which is a share of the mean diagonal, cannot reach the other numbers."""
    hessian = torch.eye(32) + 1e12 * (torch.ones(32, 32) - torch.eye(32))
    with pytest.raises(UserError, match=r"the Hessian of mine cannot be factorized, even"):
        factorize(hessian.unsqueeze(0), ["mine"], Silent())


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_a_hessian_of_little_text_factorizes(rank):
    x = weights(rank, 64)
    factor = factor_of(x.T @ x / max(rank, 1))
    assert torch.allclose(factor.upper @ factor.upper.mT, factor.hessian, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dead", [slice(5, 6), slice(0, 32), slice(0, 64)])
def test_inputs_that_are_always_zero(dead):
    hessian = second_moment(64)
    hessian[dead], hessian[:, dead] = 0, 0
    factor = factor_of(hessian)
    for part in (factor.upper, factor.carry, factor.triangles, factor.importance):
        assert part.isfinite().all()
    qtype = qtypes.get("Q4_0")
    (done,) = round_matrices([RoundingJob(weights(4, 64), qtype)], factor, "full")
    assert (qtype.decode(done.fields) - weights(4, 64))[:, dead].abs().max() < 0.5
