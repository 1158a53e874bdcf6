"""All matrices that read one input, all types: together as alone, and never worse than nearest."""

from dataclasses import replace

import pytest
import torch

from bitquilt import qtypes
from bitquilt.rounding import round_matrices as round_matrices_module
from bitquilt.rounding.round_matrices import RoundingJob, round_matrices
from bitquilt.rounding.row_batches import BatchSizes
from tests.rounding.inputs import cost, factor_of, second_moment, weights

ROUNDED = [name for name in qtypes.names() if name not in ("BF16", "F32")]
COLUMNS = 512


@pytest.fixture(scope="module")
def factor():
    return factor_of(second_moment(COLUMNS))


@pytest.fixture(scope="module")
def rounded(factor):
    """Two matrices on every type, at once."""
    jobs = [RoundingJob(weights(rows, COLUMNS), qtypes.get(n)) for n in ROUNDED for rows in (3, 10)]
    return dict(
        zip(
            [(job.qtype.name, len(job.weight)) for job in jobs],
            zip(jobs, round_matrices(jobs, factor, "full"), strict=True),
            strict=True,
        )
    )


@pytest.mark.parametrize("name", ROUNDED)
def test_better_than_nearest_on_every_qtype(rounded, factor, name):
    job, done = rounded[name, 10]
    (nearest,) = round_matrices([job], factor, "nearest")
    assert nearest.method == "nearest"
    assert done.method == "full"
    (gptq,) = round_matrices([job], factor, "gptq")
    found = cost(job.weight - job.qtype.decode(done.fields), factor.natural[0]).sum()
    assert found < 0.95 * nearest.costs.sum()
    assert found < gptq.costs.sum()


@pytest.mark.parametrize("method", ["nearest", "gptq"])
@pytest.mark.parametrize("name", ROUNDED)
def test_what_is_rounded_once_knows_their_costs(factor, name, method):
    job = RoundingJob(weights(3, COLUMNS), qtypes.get(name))
    (done,) = round_matrices([job], factor, method)
    error = job.weight - job.qtype.decode(done.fields)
    assert torch.allclose(done.costs, cost(error, factor.natural[0]), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", ROUNDED)
def test_stored_as_it_was_rounded(rounded, name):
    job, done = rounded[name, 3]
    packed = job.qtype.pack(done.fields)
    stored = job.qtype.unpack(packed)
    assert all(torch.equal(stored[field], done.fields[field]) for field in stored)


@pytest.mark.parametrize("name", ["Q3_K", "Q5_K", "IQ2_XXS", "IQ3_S", "IQ4_XS", "4bit-g64"])
def test_together_as_alone(rounded, factor, name):
    """A recipe written by a search must make the same bytes as the search did."""
    job, together = rounded[name, 10]
    (alone,) = round_matrices([job], factor, "full")
    assert all(torch.equal(field, alone.fields[key]) for key, field in together.fields.items())


@pytest.mark.parametrize("name", ["Q4_K", "IQ3_XXS", "3bit-g32"])
def test_rows_in_many_batches(factor, name):
    job = RoundingJob(weights(100, COLUMNS), qtypes.get(name))
    (whole,) = round_matrices([job], factor, "full")
    sizes = BatchSizes(least_per_thread=32 * COLUMNS, cpu=32 * COLUMNS)
    (chunked,) = round_matrices([job], factor, "full", sizes)
    assert all(torch.equal(field, chunked.fields[key]) for key, field in whole.fields.items())


def test_what_is_no_better_than_nearest_is_not_used(factor, monkeypatch):
    def worse(*arguments):
        return [[replace(one, costs=one.costs * 1e6) for one in run] for run in by_gptq(*arguments)]

    by_gptq = round_matrices_module._by_gptq
    monkeypatch.setattr(round_matrices_module, "_by_gptq", worse)
    (done,) = round_matrices([RoundingJob(weights(4, COLUMNS), qtypes.get("Q4_K"))], factor, "gptq")
    assert done.method == "nearest"


def test_floats_need_no_feedback(factor):
    (done,) = round_matrices([RoundingJob(weights(4, COLUMNS), qtypes.get("F32"))], factor, "full")
    assert done.method == "nearest"
    assert done.costs.max() == 0


@pytest.mark.parametrize("name", ["Q3_K", "IQ2_S", "IQ3_S", "IQ4_XS", "3bit-g64"])
def test_layers_together_as_alone(name):
    """Matrices of several layers, of unlike heights, each under its own Hessian."""
    qtype = qtypes.get(name)
    hessians = [second_moment(COLUMNS, seed) for seed in (1, 2, 3)]
    counts = ((10, 40), (70,), (3,))
    jobs = [
        RoundingJob(weights(rows, COLUMNS, seed=rows), qtype, layer)
        for layer, own in enumerate(counts)
        for rows in own
    ]
    for method in ("gptq", "full"):
        together = round_matrices(jobs, factor_of(*hessians), method)
        for job, done in zip(jobs, together, strict=True):
            own = factor_of(hessians[job.input])
            (alone,) = round_matrices([replace(job, input=0)], own, method)
            assert all(torch.equal(field, alone.fields[key]) for key, field in done.fields.items())
            if method == "gptq":
                error = job.weight - qtype.decode(done.fields)
                expected = cost(error, own.natural[0])
                assert torch.allclose(done.costs, expected, rtol=2e-3, atol=1e-5)
