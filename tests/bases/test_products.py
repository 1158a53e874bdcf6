"""Products are seen however a model writes them, and give the moments of what was multiplied."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bitquilt.bases.partners import Unit
from bitquilt.bases.products import WatchedProducts

WIDE, HIGH, EXPERTS = 6, 10, 3


class Written(nn.Module):
    """One parameter, and a product with it as some architecture writes it."""

    def __init__(self, shape: tuple[int, ...], way) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(x, self.weight)


def linear_with_bias(x: Tensor, weight: Tensor) -> Tensor:
    return nn.functional.linear(x, weight, torch.ones(len(weight)))


WAYS = {
    "linear": ((HIGH, WIDE), nn.functional.linear, False),
    "linear with a bias": ((HIGH, WIDE), linear_with_bias, False),
    "matmul, transposed": ((HIGH, WIDE), lambda x, weight: x @ weight.T, False),
    "Conv1D of GPT-2": ((WIDE, HIGH), lambda x, weight: x @ weight, True),
    "from the left": ((HIGH, WIDE), lambda x, weight: weight @ x[0].T, False),
}


def seen(model: nn.Module, x: Tensor) -> WatchedProducts:
    with torch.no_grad(), WatchedProducts(dict(model.named_parameters())) as products:
        model(x)
    return products


@pytest.mark.parametrize("name", WAYS)
def test_each_way_of_writing_a_product_is_seen(name: str) -> None:
    shape, way, transposed = WAYS[name]
    torch.manual_seed(0)
    x = torch.randn(1, 7, WIDE)
    ((unit, found),) = seen(Written(shape, way), x).sums.items()
    assert unit == Unit("weight", 0, transposed)
    assert found.count == 7
    torch.testing.assert_close(found.squares, x[0].double().square().sum(0))


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_have_the_tokens_that_reach_them(transposed: bool) -> None:
    def experts(x: Tensor, weight: Tensor) -> Tensor:
        for index in (0, 2):  # none is routed to the second
            own = weight[torch.tensor(index)]
            x[0, : index + 1] @ (own if transposed else own.T)
        return x

    torch.manual_seed(0)
    x = torch.randn(1, 7, WIDE)
    shape = (EXPERTS, WIDE, HIGH) if transposed else (EXPERTS, HIGH, WIDE)
    sums = seen(Written(shape, experts), x).sums
    assert {unit: found.count for unit, found in sums.items()} == {
        Unit("weight", 0, transposed): 1,
        Unit("weight", 2, transposed): 3,
    }
    expected = x[0, :3].double().square().sum(0)
    torch.testing.assert_close(sums[Unit("weight", 2, transposed)].squares, expected)


def test_a_batch_of_experts_counts_what_is_not_zero() -> None:
    x = torch.randn(EXPERTS, 5, WIDE)
    x[1, 2:] = 0
    model = Written((EXPERTS, WIDE, HIGH), torch.bmm)
    sums = seen(model, x).sums
    assert [sums[Unit("weight", index, True)].count for index in range(EXPERTS)] == [5, 2, 5]


def test_halves_of_a_fused_matrix_are_seen_apart() -> None:
    def halves(x: Tensor, weight: Tensor) -> Tensor:
        left, right = weight.chunk(2, dim=1)
        return x[..., :3] @ left.T + 2 * x[..., 3:] @ right.T

    x = torch.randn(1, 7, WIDE)
    found = seen(Written((HIGH, WIDE), halves), x).sums[Unit("weight", 0, False)]
    expected = x[0].double().square().sum(0) * torch.tensor([1.0] * 3 + [4.0] * 3)
    torch.testing.assert_close(found.squares, expected)


def test_products_without_a_parameter_leave_nothing() -> None:
    assert not seen(Written((HIGH, WIDE), lambda x, _: x @ x.mT), torch.randn(1, 7, WIDE)).sums
