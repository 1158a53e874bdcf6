"""Moments follow what a converter did to a matrix; experts that few tokens reached borrow."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from bitquilt.bases.partners import Partner, PartnerPiece, Unit
from bitquilt.bases.products import InputSums
from bitquilt.bases.statistics import BaseStatistics
from bitquilt.calibration.output_shrinkage import USUAL_OUTPUT_SHARE
from bitquilt.calibration.shrinkage import USUAL_SHARE
from bitquilt.converted.moments import FEW_TOKENS, BaseMoments

WIDE = 6


class Known:
    """Statistics of units that are given."""

    width, head = WIDE, "head"

    def __init__(self, inputs: dict[Unit, Tensor], rows: dict[Unit, Tensor]) -> None:
        self.inputs, self._rows = inputs, rows

    def sums(self) -> dict[Unit, InputSums]:
        return {
            unit: InputSums(x.double().square().sum(0), len(x)) for unit, x in self.inputs.items()
        }

    def inputs_of(self, unit: Unit) -> tuple[object, ...]:
        return (id(self.inputs[unit]),) if unit in self.inputs else ()

    def hessian(self, unit: Unit) -> Tensor | None:
        x = self.inputs.get(unit)
        return None if x is None else x.T @ x / len(x)

    def rows(self, unit: Unit) -> Tensor | None:
        return self._rows.get(unit)

    def output_moment(self, unit: Unit) -> Tensor | None:
        return self.hessian(unit)

    def looked_up(self, parameter: str) -> tuple[Tensor, Tensor] | None:
        return (torch.ones(WIDE), torch.tensor([0.5, 0.3, 0.2])) if parameter == "table" else None


def moments(known: Known, **partners: Partner | None) -> BaseMoments:
    return BaseMoments(cast(BaseStatistics, known), partners)


def unit(name: str, index: int = 0) -> Unit:
    return Unit(name, index, transposed=False)


def piece(of: Unit, rows: int, columns: Tensor | None = None) -> PartnerPiece:
    return PartnerPiece(of, torch.arange(rows), torch.arange(rows), columns)


def shrunk(hessian: Tensor, share: float = USUAL_SHARE) -> Tensor:
    return hessian * (1 - share) + hessian.diagonal().diag() * share


def test_other_orders_of_rows_and_columns_are_followed() -> None:
    torch.manual_seed(0)
    x, columns = torch.randn(40, WIDE), torch.randperm(WIDE)
    rows, order = torch.rand(4, dtype=torch.float64), torch.randperm(4)
    whole = PartnerPiece(unit("a"), torch.arange(4), order, columns)
    found = moments(Known({unit("a"): x}, {unit("a"): rows}), m=Partner(((whole,),)))
    reordered = x[:, columns]
    hessian = found.hessian("m", 0)
    assert hessian is not None
    torch.testing.assert_close(hessian, shrunk(reordered.T @ reordered / 40))
    torch.testing.assert_close(found.importance("m", 0), reordered.square().mean(0))
    torch.testing.assert_close(found.rows("m", 0, 4), rows[order])


def test_a_join_of_what_reads_one_input_has_its_hessian() -> None:
    x = torch.randn(40, WIDE)
    later = PartnerPiece(unit("b"), torch.arange(3, 5), torch.arange(2), None)
    joined = Partner(((piece(unit("a"), 3), later),))
    known = Known(
        {unit("a"): x, unit("b"): x},
        {unit("a"): torch.ones(3).double(), unit("b"): torch.zeros(2).double()},
    )
    found = moments(known, m=joined, alone=Partner(((piece(unit("a"), 3),),)))
    assert found.inputs("m", 0) == found.inputs("alone", 0)
    torch.testing.assert_close(found.hessian("m", 0), shrunk(x.T @ x / 40))
    assert found.rows("m", 0, 5).tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("tokens", [4, 4 * FEW_TOKENS])
def test_an_expert_goes_towards_the_layer_where_few_tokens_came(tokens: int) -> None:
    torch.manual_seed(0)
    few, many = torch.randn(tokens, WIDE) * 3, torch.randn(2000, WIDE)
    units = [unit("experts", index) for index in range(3)]
    known = Known({units[0]: few, units[1]: many}, {})
    stack = Partner(tuple((piece(one, 2),) for one in units))
    found = moments(known, m=stack)
    layer = (few.T @ few + many.T @ many) / (len(few) + len(many))
    trust = tokens / (tokens + FEW_TOKENS)
    wanted = shrunk(trust * (few.T @ few / tokens) + (1 - trust) * layer)
    torch.testing.assert_close(found.hessian("m", 0), wanted)
    torch.testing.assert_close(found.hessian("m", 2), shrunk(layer))  # which nothing reached


def test_a_moment_of_outputs_is_shrunk_by_the_usual_share() -> None:
    g, rows = torch.randn(50, 6), 6
    known = Known({unit("w"): g}, {})
    found = moments(known, m=Partner(((piece(unit("w"), rows),),))).output_moment("m", 0, rows)
    assert found is not None
    torch.testing.assert_close(found, shrunk(g.T @ g / 50, USUAL_OUTPUT_SHARE))


def test_a_row_of_zeros_of_an_embedding_has_no_share() -> None:
    rows, source = torch.tensor([0, 2, 3]), torch.tensor([2, 0, 1])  # the padding token's is row 1
    table = PartnerPiece(unit("table"), rows, source, None)
    found = moments(Known({}, {}), m=Partner(((table,),))).looked_up("m", 5)
    assert found is not None
    assert torch.equal(found[1], torch.tensor([0.2, 0.0, 0.5, 0.3, 0.0]))
