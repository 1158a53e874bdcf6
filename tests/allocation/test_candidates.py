"""Candidates: what fits, near the budget, and as many as closeness to it takes."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest

from bitquilt import config, qtypes
from bitquilt.allocation.budget import Budget
from bitquilt.allocation.candidates import (
    CLOSE_TO_BUDGET,
    REACH_STEP,
    candidate_sets,
)
from bitquilt.allocation.knapsack import fullest_nbytes, largest_nbytes, smallest_nbytes
from bitquilt.allocation.space import sizes_of
from bitquilt.errors import UserError
from bitquilt.targets import GGUF, get_target
from bitquilt.targets.layout import Layout
from tests.shapes import shaped_checkpoint

FIXED = 10_000


assert config  # its fields are what sentences name to callers from Python


def nbytes_in(checkpoint):
    return lambda module, qtype: qtypes.get(qtype).nbytes(*checkpoint.matrices[module])


def sets_of(checkpoint, target, bits, pins=None):
    """The candidates for that many bits per weight of the matrices, and the matrices' capacity."""
    weights = sum(rows * columns for rows, columns in checkpoint.matrices.values())
    capacity = int(weights * bits / 8)
    cell = nbytes_in(checkpoint)
    layout, budget = layout_of(checkpoint), Budget(size=capacity + FIXED)
    sets = candidate_sets(checkpoint, get_target(target), pins or {}, cell, layout, budget)
    return sets, capacity


def layout_of(checkpoint):
    """The layout of a file whose matrices take no bytes."""
    return Layout(FIXED, {}, FIXED, {"norms": 0}, checkpoint.weights)


def names(sets):
    return {module: [c.qtype for c in candidates] for module, candidates in sets.items()}


@pytest.mark.parametrize("target", ["gguf", "mlx"])
def test_every_candidate_fits_and_has_its_exact_size(target):
    checkpoint = shaped_checkpoint(width=576, heads=9, kv_heads=3, mlp=1536)
    found, _ = sets_of(checkpoint, target, 5)
    assert list(found) == list(checkpoint.matrices)
    for module, choices in found.items():
        rows, columns = checkpoint.matrices[module]
        for choice in choices:
            assert qtypes.get(choice.qtype) in qtypes.for_width(columns, target)
            assert choice.nbytes == qtypes.get(choice.qtype).nbytes(rows, columns)


def test_the_embedding_and_the_head_have_candidates_too():
    found, _ = sets_of(shaped_checkpoint(tied=False), "gguf", 4.5)
    assert len(found["model.embed_tokens"]) >= 3
    assert len(found["lm_head"]) >= 3


def test_superseded_qtypes_are_left_out_where_better_ones_fit():
    wide, _ = sets_of(shaped_checkpoint(), "gguf", 4.5)
    used = {qtype for module in names(wide).values() for qtype in module}
    assert used.isdisjoint(GGUF.superseded[256])
    narrow, _ = sets_of(shaped_checkpoint(width=576, heads=9, kv_heads=3), "gguf", 5.2)
    assert set(names(narrow)["model.embed_tokens"]) == {"MXFP4", "IQ4_NL", "Q5_0", "Q5_1"}
    wide, _ = sets_of(shaped_checkpoint(), "mlx", 4.5)
    assert not {"4bit-g32", "4bit-g64"} & set(names(wide)["model.embed_tokens"])
    narrow, _ = sets_of(shaped_checkpoint(width=576, heads=9, kv_heads=3), "mlx", 4.5)
    assert "4bit-g64" in names(narrow)["model.embed_tokens"]


@pytest.mark.parametrize(
    ("target", "stored", "bits", "own"),
    [
        ("gguf", "Q4_1", 4.5, "Q4_1"),
        ("gguf", "Q4_K", 4.5, "Q4_K"),
        ("mlx", "Q4_1", 4.5, "4bit-g32"),
        ("mlx", "Q5_K", 5.5, "5bit-g32"),
    ],
)
def test_the_type_on_whose_levels_a_matrix_lies_already_is_a_candidate(target, stored, bits, own):
    """Superseded or not: nothing is lost there. Other matrices do without it."""
    fresh = shaped_checkpoint()
    up, down = (f"model.layers.0.mlp.{part}_proj" for part in ("up", "down"))
    quantized = replace(fresh, tensor_types={f"{up}.weight": stored, f"{down}.weight": "BF16"})
    before, after = (names(sets_of(each, target, bits)[0]) for each in (fresh, quantized))
    assert set(after[up]) - set(before[up]) == {own}
    assert after[down] == before[down]


def test_a_pin_is_the_only_candidate():
    found, _ = sets_of(shaped_checkpoint(), "gguf", 4.5, {"model.embed_tokens": "Q8_0"})
    assert names(found)["model.embed_tokens"] == ["Q8_0"]


def test_the_others_are_near_what_a_pin_leaves_them():
    """An embedding in F32 takes most of 9 bits; a window around 9 would hold no type of 4."""
    checkpoint = shaped_checkpoint(vocabulary=1024)
    cell, pin = nbytes_in(checkpoint), {"model.embed_tokens": "F32"}
    others = [module for module in checkpoint.matrices if module not in pin]
    capacity = cell("model.embed_tokens", "F32") + sum(cell(module, "Q4_K") for module in others)
    found = candidate_sets(
        checkpoint, GGUF, pin, cell, layout_of(checkpoint), Budget(size=capacity + FIXED)
    )
    for module in others:
        bits = [qtypes.get(qtype).bits for qtype in names(found)[module]]
        assert min(bits) < 4.5 < max(bits) < 4.5 + GGUF.bits_reach[1] + REACH_STEP


def test_everything_may_be_pinned():
    checkpoint = shaped_checkpoint()
    pins = dict.fromkeys(checkpoint.matrices, "Q4_K")
    cell = nbytes_in(checkpoint)
    budget = Budget(size=FIXED + sum(cell(module, "Q4_K") for module in pins))
    assert names(candidate_sets(checkpoint, GGUF, pins, cell, layout_of(checkpoint), budget)) == {
        m: ["Q4_K"] for m in pins
    }


@pytest.mark.parametrize("target", ["gguf", "mlx"])
@pytest.mark.parametrize("bits", [3, 4, 4.25, 5, 6.7, 8.1, 10, 13, 20, 31])
def test_some_mix_is_as_close_as_any_could_be(target, bits):
    """One layer has few sizes: the nearest may need types far from the budget's bits."""
    checkpoint = shaped_checkpoint(layers=1)
    found, capacity = sets_of(checkpoint, target, bits)
    everything = {
        module: [qtype.name for qtype in qtypes.for_width(columns, target)]
        for module, (_, columns) in checkpoint.matrices.items()
    }
    best = nearest(everything, nbytes_in(checkpoint), capacity)
    wanted = min(best, capacity - CLOSE_TO_BUDGET * (capacity + FIXED))
    sizes = sizes_of(found)
    assert wanted <= fullest_nbytes(sizes, capacity) <= capacity
    assert smallest_nbytes(sizes) <= capacity <= largest_nbytes(sizes)


def nearest(candidates, nbytes, capacity):
    """Bytes of the largest mix within the capacity, by listing all totals."""
    totals = {0}
    for module, choices in candidates.items():
        sizes = {nbytes(module, qtype) for qtype in choices}
        totals = {t + n for t, n in itertools.product(totals, sizes) if t + n <= capacity}
    return max(totals)


@pytest.mark.parametrize(("bits", "word"), [(0.5, "small"), (1.5, "small"), (33, "large")])
@pytest.mark.parametrize("target", ["gguf", "mlx"])
def test_budgets_that_no_file_has(bits, word, target):
    checkpoint = shaped_checkpoint()
    with pytest.raises(UserError, match=rf"too {word}: the \w+ possible {target}") as why:
        sets_of(checkpoint, target, bits)
    possible = int(re.search(r"size='(\d+)B'", str(why.value))[1])
    cell = nbytes_in(checkpoint)
    candidate_sets(
        checkpoint, get_target(target), {}, cell, layout_of(checkpoint), Budget(size=possible)
    )
    beyond = possible + (1 if word == "large" else -1)
    with pytest.raises(UserError, match="is too"):
        candidate_sets(
            checkpoint, get_target(target), {}, cell, layout_of(checkpoint), Budget(size=beyond)
        )


def test_files_below_two_bits():
    """IQ1_S runs on GPUs too, TQ1_0 does not."""
    small, _ = sets_of(shaped_checkpoint(), "gguf", 1.9)
    assert all({"IQ1_S", "IQ2_XXS"} <= {*own} for own in names(small).values())
    assert not any("TQ1_0" in own for own in names(small).values())


def test_types_without_fast_kernels_are_told():
    (said,) = GGUF.about_types({"TQ1_0", "Q8_0"})
    assert "matrices on TQ1_0 are for CPUs" in said
    (said,) = GGUF.about_types({"Q2_0", "IQ4_NL"})
    assert "matrices on Q2_0 are several times slower than on Q4_0 on x86 CPUs" in said
    assert len(GGUF.about_types({"Q2_0", "TQ2_0"})) == 2
    assert GGUF.about_types({"Q4_K"}) == []


def test_pins_are_named_when_they_are_in_the_way():
    pins = {"model.embed_tokens": "F32"}
    with pytest.raises(UserError, match="with the recipe's pins the smallest possible"):
        sets_of(shaped_checkpoint(), "gguf", 3, pins)
