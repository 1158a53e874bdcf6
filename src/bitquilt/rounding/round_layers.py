"""The best rounding of all matrices that read some inputs, each onto several types.

Nearest rounding fits the scales and error feedback under the input's Hessian the codes: a draft.
Coordinate descent and a refit of the scales improve it. What the Hessian says is no better than
nearest rounding is not used. Rows of different matrices, types and layers go through together:
they share all but their levels and Hessians.

Letters: R rows of a matrix, C columns, L inputs, N rows of each in a chunk, G = C / 8 groups of
columns, K numbers that code one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter

import torch
from torch import Tensor

from bitquilt.qtypes.iquants import Codebook
from bitquilt.qtypes.qtype import QuantType, ScalarQuantType, Unpacked
from bitquilt.rounding.coordinate_descent import descend
from bitquilt.rounding.gptq import gptq
from bitquilt.rounding.group_quantizer import GroupQuantizer, group_quantizer_of
from bitquilt.rounding.hessian import Factor, take_groups
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.row_batches import (
    Done,
    RoundedRows,
    RowBatch,
    RowRun,
    map_batches,
    stacked,
    tiled,
    unstacked,
)
from bitquilt.rounding.scale_refit import refit


@dataclass(frozen=True)
class RoundingJob:
    """One matrix onto one type."""

    weight: Tensor
    """float32 [R, C]."""
    qtype: QuantType
    input: int = 0
    """Which of the factor's inputs it reads."""


def round_all(jobs: Sequence[RoundingJob], factor: Factor, method: str) -> list[RoundedRows]:
    """Round every job.

    Args:
        jobs: matrices of equal width, on the factor's device.
        factor: of the inputs that they read.
        method: one of :data:`bitquilt.rounding.METHODS`.
    """
    drafts = draft(jobs, factor, feedback=method != "nearest")
    if method != "best":
        return drafts
    return improve(jobs, [drafted.fields for drafted in drafts], factor)


def draft(jobs: Sequence[RoundingJob], factor: Factor, feedback: bool) -> list[RoundedRows]:
    """Scales by importance; codes nearest to the weights, or by error feedback if that is better.

    Args:
        jobs: matrices of equal width.
        factor: of the inputs that they read.
        feedback: whether to try it.
    """
    plain = factor.natural.diagonal(dim1=1, dim2=2)
    pieces = _nearest(jobs, factor.importance if feedback else plain)
    inputs = [job.input for job in jobs]
    nearest = map_batches(pieces, inputs, partial(_measured, factor))
    if not feedback:
        return nearest
    fed = _by_kind(pieces, inputs, _fed_back, factor)
    return [_guarded(*pair) for pair in zip(nearest, fed, strict=True)]


def improve(
    jobs: Sequence[RoundingJob], drafts: Sequence[Unpacked], factor: Factor
) -> list[RoundedRows]:
    """Descent, a refit of the scales, and descent again; none of them makes a row worse.

    Args:
        jobs: matrices of equal width.
        drafts: what they were rounded to before.
        factor: of the inputs that they read.
    """
    pieces = [
        RowBatch(job.qtype, job.weight, fields) for job, fields in zip(jobs, drafts, strict=True)
    ]
    return _by_kind(pieces, [job.input for job in jobs], _improved, factor)


def _guarded(nearest: RoundedRows, other: RoundedRows) -> RoundedRows:
    """The one of less error over the whole matrix."""
    assert other.costs is not None
    assert nearest.costs is not None
    return other if other.costs.sum() < nearest.costs.sum() else nearest


def _nearest(jobs: Sequence[RoundingJob], importance: Tensor) -> list[RowBatch]:
    """Every job on its nearest levels; importance is [L, C]. All matrices of a type at once."""
    pieces: dict[int, RowBatch] = {}
    for qtype in dict.fromkeys(job.qtype for job in jobs):
        own = [i for i, job in enumerate(jobs) if job.qtype is qtype]
        weights = [tiled(jobs[i].weight) for i in own]
        shares = [
            importance[jobs[i].input].expand_as(weight)
            for i, weight in zip(own, weights, strict=True)
        ]
        weight = torch.cat(weights)
        together = RowBatch(qtype, weight, fit(qtype, weight, torch.cat(shares)))
        for i, piece in zip(own, together.split([len(one) for one in weights]), strict=True):
            without = piece.each(itemgetter(slice(len(jobs[i].weight))))
            pieces[i] = replace(without, weight=jobs[i].weight)  # no other copy is kept
    return [pieces[i] for i in range(len(jobs))]


def _by_kind(
    pieces: Sequence[RowBatch], inputs: Sequence[int], work: Callable[..., Done], factor: Factor
) -> list[RoundedRows]:
    """Matrices through ``work``, those of one kind at a time."""
    done: dict[int, RoundedRows] = {}
    kinds = [kind_of(piece.qtype) for piece in pieces]
    for kind in dict.fromkeys(kinds):
        own = [i for i, other in enumerate(kinds) if other == kind]
        # nothing can be done for plain floats
        of_kind = partial(_measured if kind is None else work, factor)
        results = map_batches([pieces[i] for i in own], [inputs[i] for i in own], of_kind)
        done |= zip(own, results, strict=True)
    return [done[i] for i in range(len(pieces))]


def kind_of(qtype: QuantType) -> object:
    """Types whose rows one rounder can take have the same; None for those that need none."""
    if isinstance(qtype, Codebook):
        return qtype.name
    return (qtype.table, "levels") if isinstance(qtype, ScalarQuantType) else None


def _measured(factor: Factor, runs: Sequence[RowRun], inputs: Sequence[int]) -> Done:
    """What the pieces cost as they are."""
    factor = factor.take(inputs)
    return _rounded(runs, "nearest", factor.cost(_weights(runs, factor) - _levels(runs, factor)))


def _fed_back(factor: Factor, runs: Sequence[RowRun], inputs: Sequence[int]) -> Done:
    """Codes by error feedback."""
    factor = factor.take(inputs)
    rounder = group_quantizer_of(runs, factor.groups)
    codes, _, costs = gptq(_weights(runs, factor), rounder, factor)
    return _rounded(_recoded(runs, rounder, codes, factor), "gptq", costs)


def _improved(whole: Factor, runs: Sequence[RowRun], inputs: Sequence[int]) -> Done:
    """Codes and scales descended."""
    factor = whole.take(inputs)
    weight = _weights(runs, factor)
    runs = [
        _refitted(run, whole.natural[own])
        for run, own in zip(_descended(runs, weight, factor), inputs, strict=True)
    ]
    runs = _descended(runs, weight, factor)
    return [[RoundedRows(piece.fields, "best", None) for piece in run] for run in runs]


def _refitted(run: RowRun, hessian: Tensor) -> RowRun:
    """Scales refitted under the Hessian [C, C] of the run's input, all pieces of a type at once."""
    pieces: dict[int, RowBatch] = {}
    for qtype in dict.fromkeys(piece.qtype for piece in run):
        own = [i for i, piece in enumerate(run) if piece.qtype is qtype]
        weight = torch.cat([run[i].weight for i in own])
        names = run[own[0]].fields
        fields = {name: torch.cat([run[i].fields[name] for i in own]) for name in names}
        together = RowBatch(qtype, weight, refit(qtype, fields, weight, hessian))
        pieces |= zip(own, together.split([len(run[i].weight) for i in own]), strict=True)
    return [pieces[i] for i in range(len(run))]


def _descended(runs: Sequence[RowRun], weight: Tensor, factor: Factor) -> Sequence[RowRun]:
    """Codes descended from those that pieces have."""
    rounder = group_quantizer_of(runs, factor.groups)
    # [G, K, R] of each piece -> [L, G, K, N]
    codes = stacked([torch.cat([rounder.codes(piece.fields) for piece in run], 2) for run in runs])
    codes = take_groups(codes, factor.groups)
    levels = _levels(runs, factor)
    descend(weight, codes, levels, rounder, factor)
    return _recoded(runs, rounder, codes, factor)


def _weights(runs: Sequence[RowRun], factor: Factor) -> Tensor:
    """[L, C, N] in the factor's order."""
    return _columns([[piece.weight for piece in run] for run in runs], factor)


def _levels(runs: Sequence[RowRun], factor: Factor) -> Tensor:
    """What the pieces stand for, as :func:`_weights`."""
    return _columns([[piece.qtype.decode(piece.fields) for piece in run] for run in runs], factor)


def _columns(matrices: Sequence[Sequence[Tensor]], factor: Factor) -> Tensor:
    """[R, C] of each piece -> [L, C, N] in the factor's order."""
    return factor.ordered(stacked([torch.cat(list(run)).T for run in matrices]))


def _recoded(
    runs: Sequence[RowRun], rounder: GroupQuantizer, codes: Tensor, factor: Factor
) -> list[RowRun]:
    """The pieces with codes [L, G, K, N], which are in the factor's order."""
    natural = unstacked(take_groups(codes, factor.groups.argsort(1)), runs)
    return [
        [
            replace(piece, fields=piece.fields | rounder.fields(piece.qtype, own))
            for piece, own in zip(run, of_run, strict=True)
        ]
        for run, of_run in zip(runs, natural, strict=True)
    ]


def _rounded(runs: Sequence[RowRun], method: str, costs: Tensor) -> Done:
    """The pieces, rounded, with costs [L, N]."""
    return [
        [RoundedRows(piece.fields, method, own) for piece, own in zip(run, of_run, strict=True)]
        for run, of_run in zip(runs, unstacked(costs, runs), strict=True)
    ]
