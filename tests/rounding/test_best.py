"""All matrices that read one input, all grids: together as alone, and never worse than nearest."""

from dataclasses import replace

import pytest
import torch
from tests.rounding.inputs import cost, second_moment, weights

from bitquilt import grids
from bitquilt.rounding import best
from bitquilt.rounding.best import Job, round_all
from bitquilt.rounding.factor import factorize

ROUNDED = [name for name in grids.names() if name not in ("BF16", "F32")]
COLUMNS = 512


@pytest.fixture(scope="module")
def factor():
    return factorize(second_moment(COLUMNS), "x", print)


@pytest.fixture(scope="module")
def rounded(factor):
    """Two matrices on every grid, at once."""
    jobs = [Job(weights(rows, COLUMNS), grids.get(n)) for n in ROUNDED for rows in (3, 10)]
    return dict(
        zip(
            [(job.grid.name, len(job.weight)) for job in jobs],
            zip(jobs, round_all(jobs, factor, "best"), strict=True),
            strict=True,
        )
    )


@pytest.mark.parametrize("name", ROUNDED)
def test_better_than_nearest_on_every_grid(rounded, factor, name):
    job, done = rounded[name, 10]
    (nearest,) = round_all([job], factor, "nearest")
    assert nearest.method == "nearest"
    assert done.method == "best"
    assert done.costs.sum() < 0.95 * nearest.costs.sum()
    (gptq,) = round_all([job], factor, "gptq")
    assert done.costs.sum() < gptq.costs.sum()


@pytest.mark.parametrize("name", ROUNDED)
def test_stored_as_it_was_rounded(rounded, factor, name):
    job, done = rounded[name, 3]
    packed = job.grid.pack(done.fields)
    stored = job.grid.unpack(packed)
    assert all(torch.equal(stored[field], done.fields[field]) for field in stored)
    error = job.weight - job.grid.dequantize(packed)
    assert torch.allclose(done.costs, cost(error, factor.natural), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["Q3_K", "Q5_K", "IQ2_XXS", "IQ3_S", "IQ4_XS", "4bit-g64"])
def test_together_as_alone(rounded, factor, name):
    """A recipe written by a search must make the same bytes as the search did."""
    job, together = rounded[name, 10]
    (alone,) = round_all([job], factor, "best")
    assert all(torch.equal(field, alone.fields[key]) for key, field in together.fields.items())


@pytest.mark.parametrize("name", ["Q4_K", "IQ3_XXS", "3bit-g32"])
def test_rows_in_many_chunks(factor, monkeypatch, name):
    job = Job(weights(100, COLUMNS), grids.get(name))
    (whole,) = round_all([job], factor, "best")
    monkeypatch.setattr(best, "CPU_CHUNK", 32 * COLUMNS)
    (chunked,) = round_all([job], factor, "best")
    assert all(torch.equal(field, chunked.fields[key]) for key, field in whole.fields.items())


def test_what_is_no_better_than_nearest_is_not_used(factor, monkeypatch):
    def worse(*arguments):
        return [replace(one, costs=one.costs * 1e6) for one in together(*arguments)]

    together = best._together
    monkeypatch.setattr(best, "_together", worse)
    (done,) = round_all([Job(weights(4, COLUMNS), grids.get("Q4_K"))], factor, "best")
    assert done.method == "nearest"


def test_floats_need_no_feedback(factor):
    (done,) = round_all([Job(weights(4, COLUMNS), grids.get("F32"))], factor, "best")
    assert done.method == "nearest"
    assert done.costs.max() == 0
