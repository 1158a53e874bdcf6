"""What is said of budgets: what the weights get of a size, and whether a front is steep there."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from bitquilt import SearchConfig, pipeline
from bitquilt.allocation import advice
from bitquilt.allocation.plan import plan
from bitquilt.allocation.space import AllocationSpace
from bitquilt.targets.layout import Layout
from tests.factories import tiny_checkpoint
from tests.progress import Recorded
from tests.quick import SEARCH, invoke

WEIGHTS = 10 * 3200


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), layers=1)


def ten_matrices(kl_by_bits: dict[float, float]) -> AllocationSpace:
    """Ten matrices of 3200 weights; each may have any of the bits, and costs their KL."""
    bits, kls = list(kl_by_bits), np.array(list(kl_by_bits.values()))
    return AllocationSpace(
        modules=tuple("abcdefghij"),
        qtypes=(tuple(map(str, bits)),) * 10,
        sizes=(tuple(int(3200 * each / 8) for each in bits),) * 10,
        scores=(kls,) * 10,
        seconds=(np.zeros(len(bits)),) * 10,
    )


USUAL = {bits: 4.0**-bits for bits in (2, 2.5, 3, 3.5, 4, 5)}
STEEP = USUAL | {2: 1.0, 2.5: 0.15}
"""Below 3 bits it is far worse than a fourth per bit."""
LAYOUT = Layout(5000, {}, 5000, {"norms": 1000}, WEIGHTS)


@pytest.mark.parametrize(
    ("kls", "steps"),
    [
        ([1, 0.5, 0.25], 0),  # halves once a step, and steps are a third of a bit: three per bit
        ([1, 0.49, 0.25], 1),
        ([1, 0.4, 0.1, 0.08, 0.01], 2),
        ([1, 0.4, 0.1], 2),
    ],
)
def test_the_knee_is_where_a_front_ceases_to_be_steep(kls, steps):
    assert advice.knee(kls, 1 / 3) == steps


def test_a_front_is_the_exact_knapsack_at_every_step():
    space, step = ten_matrices(USUAL), int(0.25 * WEIGHTS / 8)
    found = advice.front(space, 3 * WEIGHTS // 8, step)
    assert len(found) == advice.STEPS + 1
    assert found[0].kl == pytest.approx(10 * USUAL[3])
    assert found[2].kl == pytest.approx(10 * USUAL[3.5])
    assert found[4].kl == pytest.approx(10 * USUAL[4])
    assert len(advice.front(space, int(4.6 * WEIGHTS / 8), step)) == 2  # the space ends at 5 bits


def test_below_the_knee_the_halving_and_a_better_budget_are_told():
    said = advice.knee_note(ten_matrices(STEEP), 2 * WEIGHTS // 8, LAYOUT)
    assert re.fullmatch(
        r"2\.25 bits are below the knee of the curve of KL against size: every 0\.\d+ bits more "
        r"halve the predicted KL; at 3\.25 bits \(17\.00 kB on disk\) "
        r"it is 0\.16 instead of 10 nats/token",
        said,
    )


@pytest.mark.parametrize(("kls", "bits"), [(USUAL, 2), (USUAL, 3.3), (STEEP, 3), (STEEP, 4.9)])
def test_above_the_knee_nothing_is_said(kls, bits):
    assert advice.knee_note(ten_matrices(kls), int(bits * WEIGHTS / 8), LAYOUT) == ""


def test_bits_are_those_that_the_best_mix_takes_not_those_that_it_may():
    said = advice.knee_note(ten_matrices(STEEP), int(2.04 * WEIGHTS / 8), LAYOUT)
    assert said.startswith("2.25 bits are below the knee")  # no matrix can have 2.4 of them


def test_under_a_limit_of_speed_nothing_is_said():
    space = ten_matrices(STEEP)
    assert advice.knee_note(space, 2 * WEIGHTS // 8, LAYOUT)
    assert math.isinf(space.max_seconds)
    assert advice.knee_note(replace(space, max_seconds=1.0), 2 * WEIGHTS // 8, LAYOUT) == ""


def test_what_tokenizer_and_metadata_leave_of_a_size_is_told(tiny, capfd):
    assert invoke("plan", tiny, "--size", "400kB", "--to", "both") == 0
    said = capfd.readouterr().err
    assert said.count("tokenizer and metadata take") == 1  # the same for both formats
    found = re.search(
        r"of 400\.00 kB, the tokenizer and metadata take [\d.]+ kB in gguf and [\d.]+ kB in mlx; "
        r"that leaves the weights ([\d.]+) bits in gguf and ([\d.]+) bits in mlx",
        said,
    )
    planned = plan(tiny, size="400kB", to="both")
    for bits, one in zip(found.groups(), planned, strict=True):
        assert one.bits == pytest.approx(float(bits), rel=0.01)


def test_bits_and_large_files_have_no_note_on_overhead(tiny):
    assert plan(tiny, bits=4.5)[0].notes == ()
    assert plan(tiny, size="1.4MB")[0].notes == ()


def test_a_plan_says_who_can_tell_the_knee(tiny, capfd):
    told = "`bitquilt quantize` and `bitquilt search` warn if it would."
    assert invoke("plan", tiny, "--bits", "4.5", "--to", "both") == 0
    said = " ".join(capfd.readouterr().out.split())
    assert said.count(told) == 1
    assert (
        len(re.findall(r"4\.\d+ bits per weight \([4-9]\.\d+ bits per weight with every", said))
        == 2
    )
    for asked in (("--recipe", "Q4_0"), ("--bits", "4.5", "--min-tokens-per-second", "1")):
        assert invoke("plan", tiny, *asked) == 0
        assert told not in " ".join(capfd.readouterr().out.split())


def test_a_search_says_which_budgets_are_below_the_knee(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(advice, "STEEP", 0.0)  # every front is steep
    progress = Recorded()
    asked = SEARCH | {"bits": 4.5, "search": SearchConfig(method="knapsack"), "output": tmp_path}
    (found,) = pipeline.search(tiny, **asked, progress=progress)
    (said,) = [line for line in progress.lines if "below the knee" in line]
    assert found.source == "knapsack"
    assert said.startswith(f"4.5bit for gguf: {found.bits:.2f} bits are below the knee")
