"""What converters do to matrices is found again by content alone, and nothing else is."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitquilt.bases.partners import Partner, find_partners

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SEEDS = st.integers(0, 2**31)
SIDES = st.integers(2, 40)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape)


def rebuilt(partner: Partner, parameters: dict[str, Tensor], shape: torch.Size) -> Tensor:
    """The base's matrix, gathered from the parameters as its partner says."""
    made = torch.zeros(len(partner.experts), *shape[-2:])
    for expert, pieces in zip(made, partner.experts, strict=True):
        for piece in pieces:
            stack = parameters[piece.unit.parameter]
            matrix = stack.reshape(-1, *stack.shape[-2:])[piece.unit.index]
            rows = (matrix.T if piece.unit.transposed else matrix)[piece.source_rows]
            expert[piece.rows] = rows if piece.columns is None else rows[:, piece.columns]
    return made.reshape(shape)


@settings(max_examples=60)
@given(SEEDS, SIDES, SIDES, st.integers(2, 4), DTYPES)
def test_whatever_a_converter_does_is_undone(seed, rows, columns, experts, dtype) -> None:
    torch.manual_seed(seed)
    parameters = {
        "q": normal(rows, columns),
        "k": normal(rows, columns),
        "experts": normal(experts, 2 * rows, columns),
        "conv": normal(columns + 1, rows),
        "norm": normal(columns),
    }
    for index in range(experts):
        parameters[f"e{index}"] = normal(rows, columns)
    order, across = torch.randperm(rows), torch.randperm(columns)
    stack = parameters["experts"]
    base = {
        "equal": parameters["q"],
        "reordered": parameters["k"][order],
        "joined": torch.cat([parameters["q"], parameters["k"][order]]),
        "stacked": torch.stack([parameters[f"e{index}"] for index in range(experts)]),
        "sliced": stack[:, rows:],
        "interleaved": stack[:, ::2],
        "transposed": parameters["conv"].T,
        "columns": parameters["e1"][:, across],
        "padded": torch.cat([parameters["q"], torch.zeros(3, columns)]),
    }
    base = {name: matrix.to(dtype) for name, matrix in base.items()}
    found = find_partners(base, parameters)
    assert list(found) == list(base)
    for name, matrix in base.items():
        partner = found[name]
        assert partner is not None, name
        again = rebuilt(partner, parameters, matrix.shape)
        assert torch.equal(again.to(dtype), matrix), name


def test_relations_are_told_in_words() -> None:
    torch.manual_seed(0)
    parameters = {"a": normal(6, 8), "b": normal(6, 8), "stack": normal(3, 6, 10)}
    base = {
        "equal": parameters["a"],
        "order": parameters["a"].flip(0),
        "join": torch.cat([parameters["a"], parameters["b"]]),
        "stack": parameters["stack"],
        "slice": parameters["stack"][:, 3:],
        "turned": parameters["stack"].mT.contiguous(),
        "columns": parameters["b"].flip(1),
    }
    found = find_partners(base, parameters)
    assert {name: partner.relation for name, partner in found.items()} == {
        "equal": "equal",
        "order": "other rows or another order of them",
        "join": "a join of 2",
        "stack": "a stack of 3",
        "slice": "a stack of 3, a slice",
        "turned": "a stack of 3, transposed",
        "columns": "another order of columns",
    }
    assert {*found["join"].parameters} == {"a", "b"}


@given(SEEDS, SIDES, SIDES, st.data())
def test_one_other_number_is_no_partner(seed, rows, columns, data) -> None:
    torch.manual_seed(seed)
    parameters = {"a": normal(rows, columns), "b": normal(rows, columns)}
    changed = parameters["a"].clone()
    row = data.draw(st.integers(0, rows - 1))
    column = data.draw(st.integers(0, columns - 1))
    changed[row, column] += 1
    assert find_partners({"changed": changed}, parameters) == {"changed": None}


def test_equal_parameters_are_taken_in_their_order() -> None:
    matrix = torch.ones(4, 8)  # as blocks of a model that was made deeper by repeating some
    parameters = {f"layers.{index}": matrix.clone() for index in range(3)}
    base = {f"blk.{index}": matrix for index in range(3)}
    found = find_partners(base, parameters)
    assert [found[f"blk.{index}"].parameters for index in range(3)] == [
        (f"layers.{index}",) for index in range(3)
    ]


def test_many_equal_rows_are_no_hindrance() -> None:
    torch.manual_seed(0)
    embedding = normal(20_000, 8)
    embedding[100:] = embedding[100]  # tokens that were never trained
    found = find_partners({"token_embd": embedding}, {"embed": embedding})
    assert found["token_embd"].parameters == ("embed",)
