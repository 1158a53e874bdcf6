"""Rounding of all matrices that read some inputs, each onto several types.

Two steps. :func:`round_once` fits scales by importance and codes by GPTQ under the input's Hessian.
:func:`polish` improves the result by coordinate descent and a refit of the scales. What the Hessian
says is no better than nearest rounding is not used. Where the second moment of a matrix's output
gradients is known, both go through it chunk by chunk (:mod:`.output_feedback`), so that rows make
up for the errors of others: the same chunk of all matrices at a time. Rows of different matrices,
types and layers go through in one batch (:mod:`.row_batches`): they share all but their levels and
Hessians.

Letters: R rows of a matrix, C columns, L inputs, N rows of each in a batch, G = C / 8 groups of
columns, K numbers that code one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from operator import itemgetter

import torch
from torch import Tensor

from bitquilt.qtypes.iquants import Codebook
from bitquilt.qtypes.qtype import QuantType, ScalarQuantType, Unpacked
from bitquilt.rounding.coordinate_descent import descend
from bitquilt.rounding.gptq import gptq
from bitquilt.rounding.group_quantizer import GroupQuantizer, group_quantizer_of
from bitquilt.rounding.hessian import Factor, take_groups, take_inputs
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.output_feedback import (
    ChunkedMatrix,
    OutputFactor,
    keep_chunk,
    targets_of,
    work_out,
)
from bitquilt.rounding.row_batches import (
    DEFAULT_SIZES,
    BatchSizes,
    RoundedRows,
    RowBatch,
    RowRun,
    Rows,
    batch_rows,
    by_type,
    decode_rows,
    joined_fields,
    map_batches,
    pad_rows,
    unbatch_rows,
)
from bitquilt.rounding.scale_refit import refit


@dataclass(frozen=True)
class RoundingJob:
    """One matrix to round onto one type."""

    weight: Tensor
    """float32 [R, C]."""
    qtype: QuantType
    input: int = 0
    """Which of the factor's inputs the matrix reads."""
    outputs: OutputFactor | None = None
    """Of its output gradients; without it, rows do not make up for each other."""


def round_matrices(
    jobs: Sequence[RoundingJob], factor: Factor, method: str, sizes: BatchSizes = DEFAULT_SIZES
) -> list[RoundedRows]:
    """Round every job by a method.

    Args:
        jobs: matrices of equal width, on the factor's device.
        factor: of the inputs that they read.
        method: one of :data:`bitquilt.rounding.METHODS`.
        sizes: how many rows go through together; they change no result.
    """
    rounded = round_once(jobs, factor, method != "nearest", sizes)
    if method != "full":
        return rounded
    return polish(jobs, [one.fields for one in rounded], factor, sizes)


def round_once(
    jobs: Sequence[RoundingJob],
    factor: Factor,
    feedback: bool,
    sizes: BatchSizes = DEFAULT_SIZES,
) -> list[RoundedRows]:
    """Fit scales by importance; round codes to the nearest, or by GPTQ where that is better.

    Args:
        jobs: matrices of equal width.
        factor: of the inputs that they read.
        feedback: whether to try GPTQ.
        sizes: how many rows go through together.
    """
    inputs = [job.input for job in jobs]
    if not feedback:
        matrices = _nearest(jobs, factor.natural.diagonal(dim1=1, dim2=2))
        return map_batches(matrices, inputs, partial(_measured, factor), sizes)

    def one_chunk(jobs: Sequence[RoundingJob], _: object) -> list[RoundedRows]:
        matrices, inputs = _nearest(jobs, factor.importance), [job.input for job in jobs]
        nearest = map_batches(matrices, inputs, partial(_measured, factor), sizes)
        by_gptq = _by_kind(matrices, inputs, partial(_by_gptq, factor), factor, sizes)
        return [_cheaper(*pair) for pair in zip(nearest, by_gptq, strict=True)]

    return _by_chunks(jobs, None, one_chunk)


def measure_rounded(
    job: RoundingJob, fields: Unpacked, factor: Factor, sizes: BatchSizes = DEFAULT_SIZES
) -> Tensor:
    """Tell what each row of a matrix that is rounded already costs, as :func:`round_once` does.

    Args:
        job: the matrix.
        fields: what it was rounded to.
        factor: of the input that it reads.
        sizes: how many rows go through together.

    Returns:
        float32 [R].
    """
    matrix = ChunkedMatrix(job.weight, job.qtype, job.outputs)
    for chunk in range(matrix.count):
        own = {name: matrix.rows_of(one, chunk) for name, one in fields.items()}
        rows = [Rows(job.qtype, matrix.target(chunk), own)]
        (done,) = map_batches(rows, [job.input], partial(_measured, factor), sizes)
        matrix.keep(chunk, done)
    costs = matrix.result().costs
    assert costs is not None
    return costs


def polish(
    jobs: Sequence[RoundingJob],
    rounded: Sequence[Unpacked],
    factor: Factor,
    sizes: BatchSizes = DEFAULT_SIZES,
) -> list[RoundedRows]:
    """Descend, refit the scales, and descend again; none of these makes a row worse.

    Where output gradients are known, a row is judged by what it is to be, given all the others.

    Args:
        jobs: matrices of equal width.
        rounded: what :func:`round_once` made of them.
        factor: of the inputs that they read.
        sizes: how many rows go through together.
    """

    def one_chunk(jobs: Sequence[RoundingJob], own: Sequence[Unpacked]) -> list[RoundedRows]:
        matrices = [Rows(job.qtype, job.weight, rows) for job, rows in zip(jobs, own, strict=True)]
        inputs = [job.input for job in jobs]
        return _by_kind(matrices, inputs, partial(_polished, factor), factor, sizes)

    return _by_chunks(jobs, rounded, one_chunk)


def _by_chunks(
    jobs: Sequence[RoundingJob],
    before: Sequence[Unpacked] | None,
    function: Callable[[Sequence[RoundingJob], Sequence[Unpacked]], list[RoundedRows]],
) -> list[RoundedRows]:
    """Call a function on the first chunk of all jobs, then on the second of those that have one, …

    Args:
        jobs: whole matrices.
        before: what they were rounded to, if the function polishes.
        function: rounds matrices which stand for one chunk of each of some jobs.
    """
    if jobs and jobs[0].weight.device.type != "cpu":
        work_out([job.outputs for job in jobs if job.outputs is not None], before is not None)
    matrices = [
        ChunkedMatrix(job.weight, job.qtype, job.outputs, before[i] if before is not None else None)
        for i, job in enumerate(jobs)
    ]
    for chunk in range(max((matrix.count for matrix in matrices), default=0)):
        own = [i for i, matrix in enumerate(matrices) if chunk < matrix.count]
        some = [matrices[i] for i in own]
        chunks = [
            replace(jobs[i], weight=target, outputs=None)
            for i, target in zip(own, targets_of(some, chunk), strict=True)
        ]
        fields = [matrix.rounded(chunk) for matrix in some if before is not None]
        keep_chunk(some, chunk, function(chunks, fields))
    return [matrix.result() for matrix in matrices]


def _cheaper(nearest: RoundedRows, other: RoundedRows) -> RoundedRows:
    """Take the one of less error over the whole matrix."""
    assert other.costs is not None
    assert nearest.costs is not None
    return other if other.costs.sum() < nearest.costs.sum() else nearest


def _nearest(jobs: Sequence[RoundingJob], importance: Tensor) -> list[Rows]:
    """Fit every job to its nearest levels, all of one type at once; importance is [L, C]."""
    matrices: dict[int, Rows] = {}
    for qtype in dict.fromkeys(job.qtype for job in jobs):
        own = [i for i, job in enumerate(jobs) if job.qtype is qtype]
        weights = [pad_rows(jobs[i].weight) for i in own]
        shares = [
            importance[jobs[i].input].expand_as(weight)
            for i, weight in zip(own, weights, strict=True)
        ]
        weight = torch.cat(weights)
        together = Rows(qtype, weight, fit(qtype, weight, torch.cat(shares)))
        for i, padded in zip(own, together.split([len(one) for one in weights]), strict=True):
            rows = len(jobs[i].weight)
            unpadded = padded if len(padded.weight) == rows else padded.map(itemgetter(slice(rows)))
            matrices[i] = replace(unpadded, weight=jobs[i].weight)  # no other copy is kept
    return [matrices[i] for i in range(len(jobs))]


def _by_kind(
    matrices: Sequence[Rows],
    inputs: Sequence[int],
    function: Callable[[RowBatch], list[list[RoundedRows]]],
    factor: Factor,
    sizes: BatchSizes,
) -> list[RoundedRows]:
    """Call a function on batches of matrices of one kind; plain floats are only measured."""
    done: dict[int, RoundedRows] = {}
    kinds = [kind_of_qtype(rows.qtype) for rows in matrices]
    for kind in dict.fromkeys(kinds):
        own = [i for i, other in enumerate(kinds) if other == kind]
        on_kind = partial(_measured, factor) if kind is None else function
        results = map_batches([matrices[i] for i in own], [inputs[i] for i in own], on_kind, sizes)
        done |= zip(own, results, strict=True)
    return [done[i] for i in range(len(matrices))]


def kind_of_qtype(qtype: QuantType) -> object:
    """Return equal values for types that one group quantizer takes, and None for floats."""
    if isinstance(qtype, Codebook):
        return qtype.name
    return (qtype.table, "levels") if isinstance(qtype, ScalarQuantType) else None


def _measured(whole: Factor, batch: RowBatch) -> list[list[RoundedRows]]:
    """Return the rows as they are, with what they cost."""
    factor = whole.take(batch.inputs)
    errors = _weights(batch.runs, factor) - _levels(batch.runs, factor)
    return _with_costs(batch.runs, "nearest", factor.cost(errors))


def _by_gptq(whole: Factor, batch: RowBatch) -> list[list[RoundedRows]]:
    """Return the rows with codes by error feedback."""
    factor = whole.take(batch.inputs)
    quantizer = group_quantizer_of(batch.runs, factor.groups)
    codes, _, costs = gptq(_weights(batch.runs, factor), quantizer, factor)
    return _with_costs(_with_codes(batch.runs, quantizer, codes, factor), "gptq", costs)


def _polished(whole: Factor, batch: RowBatch) -> list[list[RoundedRows]]:
    """Return the rows with codes and scales descended."""
    factor = whole.take(batch.inputs)
    weight = _weights(batch.runs, factor)
    descended = _descended(batch.runs, weight, factor)
    refitted = _refitted(descended, batch.inputs, whole.natural)
    descended = _descended(refitted, weight, factor)
    return [[RoundedRows(rows.fields, "full", None) for rows in run] for run in descended]


def _refitted(runs: Sequence[RowRun], inputs: Sequence[int], hessians: Tensor) -> list[RowRun]:
    """Refit scales under the Hessians [L, C, C] of the runs' inputs, all rows of a type at once.

    On a GPU so go those of all inputs that have as many; on a CPU each input's on their own, which
    does not change the last bits with what else there is.
    """
    one_by_one = hessians.device.type == "cpu"
    groups: dict[object, list[tuple[int, list[int]]]] = {}
    for at, run in enumerate(runs):
        for qtype in dict.fromkeys(rows.qtype for rows in run):
            own = [i for i, rows in enumerate(run) if rows.qtype is qtype]
            count = sum(len(run[i].weight) for i in own)
            groups.setdefault((qtype.name, count, at * one_by_one), []).append((at, own))
    refitted: list[dict[int, Rows]] = [{} for _ in runs]
    for group in groups.values():
        places = [(at, i) for at, own in group for i in own]
        rows = [runs[at][i] for at, i in places]
        qtype, weight = rows[0].qtype, torch.cat([one.weight for one in rows])
        under = take_inputs(hessians, [inputs[at] for at, _ in group])
        fields = refit(qtype, joined_fields([one.fields for one in rows]), weight, under)
        parts = Rows(qtype, weight, fields).split([len(one.weight) for one in rows])
        for (at, i), part in zip(places, parts, strict=True):
            refitted[at][i] = part
    return [[own[i] for i in range(len(own))] for own in refitted]


def _descended(runs: Sequence[RowRun], weight: Tensor, factor: Factor) -> Sequence[RowRun]:
    """Descend from the codes that the rows have."""
    quantizer = group_quantizer_of(runs, factor.groups)
    # [G, K, R] of each matrix -> [L, G, K, N]
    natural = by_type(runs, lambda _, fields: quantizer.codes(fields), 2)
    codes = take_groups(batch_rows([torch.cat(own, 2) for own in natural]), factor.groups)
    levels = _levels(runs, factor)
    descend(weight, codes, levels, quantizer, factor)
    return _with_codes(runs, quantizer, codes, factor)


def _weights(runs: Sequence[RowRun], factor: Factor) -> Tensor:
    """Original weights [L, C, N] in the factor's order."""
    return _columns([[rows.weight for rows in run] for run in runs], factor)


def _levels(runs: Sequence[RowRun], factor: Factor) -> Tensor:
    """Rounded weights [L, C, N] in the factor's order."""
    return _columns(by_type(runs, decode_rows), factor)


def _columns(matrices: Sequence[Sequence[Tensor]], factor: Factor) -> Tensor:
    """Turn [R, C] of each matrix into [L, C, N] in the factor's order."""
    return factor.ordered(batch_rows([torch.cat(list(run)).T for run in matrices]))


def _with_codes(
    runs: Sequence[RowRun], quantizer: GroupQuantizer, codes: Tensor, factor: Factor
) -> list[RowRun]:
    """Return the rows with codes [L, G, K, N], which are in the factor's order."""
    natural = unbatch_rows(take_groups(codes, factor.groups.argsort(1)), runs)
    flat, own_codes = list(chain(*runs)), list(chain(*natural))
    changed: dict[int, Rows] = {}
    for qtype in dict.fromkeys(rows.qtype for rows in flat):
        own = [i for i, rows in enumerate(flat) if rows.qtype is qtype]
        fields = quantizer.fields(qtype, torch.cat([own_codes[i] for i in own], 2))
        counts = [len(flat[i].weight) for i in own]
        parts = {name: field.split(counts) for name, field in fields.items()}
        for at, i in enumerate(own):
            new = {name: part[at] for name, part in parts.items()}
            changed[i] = replace(flat[i], fields=flat[i].fields | new)
    ordered = iter([changed[i] for i in range(len(flat))])
    return [[next(ordered) for _ in run] for run in runs]


def _with_costs(runs: Sequence[RowRun], method: str, costs: Tensor) -> list[list[RoundedRows]]:
    """Return the rows as rounded by a method, with costs [L, N]."""
    return [
        [RoundedRows(rows.fields, method, own) for rows, own in zip(run, of_run, strict=True)]
        for run, of_run in zip(runs, unbatch_rows(costs, runs), strict=True)
    ]
