"""Feedback between rows: against closed forms, and less KL than rows that are rounded alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitquilt import qtypes
from bitquilt.calibration.output_shrinkage import CHUNKS
from bitquilt.calibration.statistics import CalibrationStats
from bitquilt.errors import UserError
from bitquilt.rounding import output_feedback
from bitquilt.rounding.input_work import MemoryUse
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.output_feedback import (
    OUTPUT_DAMPING,
    ChunkedMatrix,
    factorize_outputs,
    keep_chunk,
    targets_of,
    work_out,
)
from bitquilt.rounding.round_layers import polish_layers, round_layers
from bitquilt.rounding.round_matrices import (
    RoundingJob,
    measure_rounded,
    polish,
    round_matrices,
    round_once,
)
from bitquilt.rounding.row_batches import TILE, BatchSizes, RoundedRows
from bitquilt.runtime.progress import Silent
from tests.rounding.inputs import factor_of, second_moment, weights
from tests.rounding.test_round_layers import captured

COLUMNS = 256
TYPES = ["Q3_K", "Q4_K", "IQ4_NL", "3bit-g64"]


def damped(moment):
    """B as it is factorized, in double precision and in the matrix's own order."""
    own = moment.double().diagonal()
    trusted = moment.double()
    trusted.diagonal().copy_(own + OUTPUT_DAMPING * own.mean())
    return trusted


def kl(error, outputs, inputs):
    """½ tr(B E A Eᵀ), in double precision."""
    error = error.double()
    return 0.5 * float(((outputs.double() @ error) * (error @ inputs.double())).sum())


def error_of(job, done):
    return job.qtype.decode(done.fields) - job.weight


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 700))
def test_chunks_are_whole_tiles_of_at_least_one_tile(rows):
    chunks = factorize_outputs(torch.eye(rows), "m").chunks
    assert [chunk.start for chunk in chunks] == [0, *(chunk.stop for chunk in chunks[:-1])]
    assert chunks[-1].stop == rows
    assert len(chunks) == min(CHUNKS, max(1, rows // TILE))
    assert all(chunk.start % TILE == 0 for chunk in chunks)
    assert all(chunk.stop - chunk.start >= min(rows, TILE) for chunk in chunks)


@pytest.mark.parametrize("polishes", [False, True])
@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_targets_minimize_the_whole_cost(polishes, chunk):
    """Rows not rounded yet are free when rounding: their best errors are solved for, too.

    The independent answer is that of the Kronecker system of all free weights.
    """
    rows, columns = 3 * TILE, 4
    moment, hessian = second_moment(rows), second_moment(8)[:columns, :columns].double()
    hessian += torch.eye(columns)
    outputs = factorize_outputs(moment, "m")
    whole = damped(moment)[outputs.order][:, outputs.order]
    weight = weights(rows, columns)
    levels = weight + 0.1 * weights(rows, columns, seed=5)
    qtype, own = qtypes.get("F32"), outputs.chunks[chunk]
    matrix = ChunkedMatrix(weight, qtype, outputs, {"codes": levels} if polishes else None)
    for before in range(0 if polishes else chunk):
        fields = {"codes": levels[outputs.order[outputs.chunks[before]]]}
        matrix.keep(before, RoundedRows(fields, "gptq", None))
    errors = (levels - weight)[outputs.order].double()
    free = torch.zeros(rows, dtype=torch.bool)
    free[own] = True
    if not polishes:
        free[own.start :] = True
    system = torch.kron(whole, hessian)
    unknown = free.repeat_interleave(columns)
    pull = system[unknown][:, ~unknown] @ errors.flatten()[~unknown]
    best = torch.linalg.solve(system[unknown][:, unknown], -pull)
    expected = best.view(-1, columns)[: own.stop - own.start]  # the chunk is the first that is free
    found = matrix.target(chunk) - weight[outputs.order[own]]
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("polishes", [False, True])
def test_what_is_worked_out_together_is_as_alone(polishes, monkeypatch):
    monkeypatch.setattr(output_feedback, "WORKED_OUT", 2 * 8 * 96**2)
    moments = [second_moment(rows, seed=i) for i, rows in enumerate([96, 64, 96, 96])]
    alone, together = ([factorize_outputs(one.clone(), "m") for one in moments] for _ in range(2))
    work_out(together, polishes)
    for own, other in zip(alone, together, strict=True):
        assert ("given_all" if polishes else "_in_turn") in vars(other)
        links = zip(own.given_all, other.given_all, strict=True)
        if not polishes:
            links = zip(own.forward, other.forward, strict=True)
            assert torch.allclose(own.shares, other.shares)
        assert all(torch.allclose(one, two, rtol=1e-4, atol=1e-6) for one, two in links)


@pytest.mark.parametrize("polishes", [False, True])
def test_a_gpu_links_chunks_of_many_matrices_as_each_alone(polishes, monkeypatch):
    """Of different sizes and types, some without output gradients."""
    monkeypatch.setattr(output_feedback, "_on_cpu", lambda _: False)
    names, heights = ["Q4_K", "Q4_K", "Q3_K", "Q4_K"], [96, 96, 96, 64]
    jobs = [
        (weights(rows, 256, seed=rows + i), qtypes.get(name))
        for i, (name, rows) in enumerate(zip(names, heights, strict=True))
    ]
    fitted = [fit(qtype, weight, None) for weight, qtype in jobs]
    outputs = [
        None if i == 1 else factorize_outputs(second_moment(rows, seed=i), "m")
        for i, rows in enumerate(heights)
    ]
    alone, together = (
        [
            ChunkedMatrix(weight, qtype, of, before if polishes else None)
            for (weight, qtype), of, before in zip(jobs, outputs, fitted, strict=True)
        ]
        for _ in range(2)
    )
    for chunk in range(3):
        own = [i for i, matrix in enumerate(alone) if chunk < matrix.count]
        targets = targets_of([together[i] for i in own], chunk)
        assert all(
            torch.allclose(alone[i].target(chunk), found, atol=1e-5)
            for i, found in zip(own, targets, strict=True)
        )
        done = [
            RoundedRows(fit(jobs[i][1], target, None), "gptq", None)
            for i, target in zip(own, targets, strict=True)
        ]
        for i, one in zip(own, done, strict=True):
            alone[i].keep(chunk, one)
        keep_chunk([together[i] for i in own], chunk, done)
    for one, two in zip(alone, together, strict=True):
        assert torch.equal(one.result().fields["codes"], two.result().fields["codes"])


@pytest.mark.parametrize("method", ["gptq", "full"])
@pytest.mark.parametrize("name", TYPES)
def test_less_kl_than_rows_alone(name, method):
    """Under B as it is, not damped; and polishing makes it less still."""
    rows = 256
    moment, factor = second_moment(rows, seed=3), factor_of(second_moment(COLUMNS))
    alone = RoundingJob(weights(rows, COLUMNS), qtypes.get(name))
    linked = RoundingJob(alone.weight, alone.qtype, 0, factorize_outputs(moment, "m"))
    plain, done = round_matrices([alone, linked], factor, method)
    before, after = (kl(error_of(alone, one), moment, factor.natural[0]) for one in (plain, done))
    assert after < 0.9 * before
    if method == "full":
        (rough,) = round_once([linked], factor, True)
        assert after < kl(error_of(linked, rough), moment, factor.natural[0])


@pytest.mark.parametrize("name", TYPES)
def test_rows_that_do_not_interact_are_rounded_as_alone(name):
    """B is diagonal: no target moves, and rows come back in their own order."""
    rows = 100
    diagonal = torch.rand(rows, generator=torch.Generator().manual_seed(0)).diag()
    factor = factor_of(second_moment(COLUMNS))
    alone = RoundingJob(weights(rows, COLUMNS), qtypes.get(name))
    linked = RoundingJob(alone.weight, alone.qtype, 0, factorize_outputs(diagonal, "m"))
    for method in ("gptq", "full"):
        plain, done = round_matrices([alone, linked], factor, method)
        assert all(torch.equal(field, plain.fields[key]) for key, field in done.fields.items())
        assert done.method == plain.method
    plain, done = round_matrices([alone, linked], factor, "gptq")
    assert torch.allclose(done.costs, plain.costs, rtol=1e-5)


def test_costs_of_rows_add_up_to_the_kl():
    """With chunks of rows that do not interact among themselves, the sum is exact."""
    rows = 3 * TILE
    moment = second_moment(rows, seed=3)
    order = factorize_outputs(moment, "m").order
    chunk = torch.arange(rows)[order.argsort()] // TILE
    same = (chunk.unsqueeze(0) == chunk) & ~torch.eye(rows, dtype=torch.bool)
    # V's diagonal blocks are diagonal where B is made from such a V
    upper = torch.rand(rows, rows, generator=torch.Generator().manual_seed(1)).triu() / rows
    upper[same[order][:, order]] = 0
    upper += torch.linspace(3, 1, rows).diag()
    whole = upper @ upper.T
    mean = whole.diagonal().mean() / (1 + OUTPUT_DAMPING)
    own = whole.diagonal() - OUTPUT_DAMPING * mean
    undamped = whole.clone()
    undamped.diagonal().copy_(own)
    outputs = factorize_outputs(undamped, "m")
    assert torch.equal(outputs.order, torch.arange(rows))
    factor = factor_of(second_moment(COLUMNS))
    job = RoundingJob(weights(rows, COLUMNS), qtypes.get("Q4_K"), 0, outputs)
    (done,) = round_once([job], factor, True)
    found = 0.5 * float(done.costs @ whole.diagonal())
    assert found == pytest.approx(kl(error_of(job, done), whole, factor.natural[0]), rel=1e-3)
    # what others rounded is judged alike, also rows that made up for nothing
    assert torch.allclose(measure_rounded(job, done.fields, factor), done.costs, rtol=1e-4)
    fields = fit(job.qtype, job.weight, None)
    error = job.qtype.decode(fields) - job.weight
    found = 0.5 * float(measure_rounded(job, fields, factor) @ whole.diagonal())
    assert found == pytest.approx(kl(error, whole, factor.natural[0]), rel=1e-3)


@pytest.mark.parametrize("name", ["Q3_K", "IQ3_XXS", "3bit-g64"])
def test_together_as_alone(name):
    """Whatever is rounded with it, however it is cut into batches, a matrix has the same bytes."""
    hessians = [second_moment(COLUMNS, seed) for seed in (1, 2)]
    shapes = ((130, 0, True), (70, 1, True), (40, 1, False), (300, 0, True))
    jobs = [
        RoundingJob(
            weights(rows, COLUMNS, seed=rows),
            qtypes.get(name),
            own,
            factorize_outputs(second_moment(rows), "m") if linked else None,
        )
        for rows, own, linked in shapes
    ]
    factor = factor_of(*hessians)
    sizes = BatchSizes(least_per_thread=TILE * COLUMNS, cpu=TILE * COLUMNS)
    for method in ("gptq", "full"):
        together = round_matrices(jobs, factor, method)
        cut = round_matrices(jobs, factor, method, sizes)
        for job, *many in zip(jobs, together, cut, strict=True):
            (alone,) = round_matrices([job], factor, method)
            for one in many:
                assert all(torch.equal(alone.fields[key], f) for key, f in one.fields.items())


def test_nearest_rounding_has_no_feedback():
    factor = factor_of(second_moment(COLUMNS))
    alone = RoundingJob(weights(80, COLUMNS), qtypes.get("Q4_K"))
    linked = RoundingJob(alone.weight, alone.qtype, 0, factorize_outputs(second_moment(80), "m"))
    plain, done = round_matrices([alone, linked], factor, "nearest")
    assert all(torch.equal(field, plain.fields[key]) for key, field in done.fields.items())


def test_polishing_goes_on_from_stored_rows():
    """A run that was stopped has only what the bank stores."""
    factor = factor_of(second_moment(COLUMNS))
    outputs = factorize_outputs(second_moment(80), "m")
    job = RoundingJob(weights(80, COLUMNS), qtypes.get("Q4_K"), 0, outputs)
    (rough,) = round_once([job], factor, True)
    (whole,) = round_matrices([job], factor, "full")
    stored = job.qtype.unpack(job.qtype.pack(rough.fields))
    (later,) = polish([job], [stored], factor)
    assert all(torch.equal(field, later.fields[key]) for key, field in whole.fields.items())


def test_outputs_that_nothing_depends_on_are_rounded_alone():
    outputs = factorize_outputs(torch.zeros(80, 80), "m")
    assert all(link.count_nonzero() == 0 for link in (*outputs.forward, *outputs.given_all))
    assert torch.equal(outputs.shares, torch.ones(80))


def test_gradients_that_are_not_finite_are_refused_by_name():
    moment = torch.eye(8)
    moment[2, 3] = float("nan")
    with pytest.raises(UserError, match=r"1 of the 64 numbers in the output gradients of m\.o are"):
        factorize_outputs(moment, "m.o")


def test_stopping_and_sizes_change_no_bytes(tmp_path, monkeypatch):
    """The bank rounds with what statistics know of outputs, whatever goes through together."""

    def outputs(self, module):
        return second_moment(self.checkpoint.matrices[module][0])

    modules = [
        f"model.layers.{layer}.mlp.{kind}_proj" for layer in (0, 1) for kind in ("up", "gate")
    ]
    chosen = {module: ["Q4_K"] for module in modules}
    alone = captured(tmp_path / "alone", "full")
    round_layers(alone, chosen, Silent())
    monkeypatch.setattr(CalibrationStats, "outputs", outputs)
    packed = []
    for room in (1 << 28, 1):
        memory = MemoryUse(input_bytes=room, cell_weights=room)
        bank = captured(tmp_path / str(room), "full")
        # the second time, one of the matrices is there already
        for some in (chosen,) if room > 1 else ({modules[0]: ["Q4_K"]}, chosen):
            bank = LayerBank(bank.checkpoint, bank.work, "full")
            round_layers(bank, some, Silent(), memory)
            polish_layers(bank, some, Silent(), memory)
        for load in (bank.packed, bank.polished):
            packed.append([load(module, "Q4_K")["data"] for module in modules])
    assert all(map(torch.equal, packed[0], packed[2]))
    assert all(map(torch.equal, packed[1], packed[3]))
    before = [alone.packed(module, "Q4_K")["data"] for module in modules]
    assert not any(map(torch.equal, packed[0], before))
