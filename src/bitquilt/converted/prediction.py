"""What each type costs a matrix, in nats per token, from a sample of its rows.

The KL of an error is ½ Σ_r b_r ΔW_r H ΔW_rᵀ (:mod:`bitquilt.bases.fisher`), and that of an
embedding ½ Σ_v f_v Σ_c g_c ΔW_vc². Both are sums over rows, which are rounded independently. So
rows are drawn as often as they count (:mod:`bitquilt.rounding.row_sample`), rounded as the whole
matrix would be, and the sum is estimated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from bitquilt import qtypes
from bitquilt.converted.formats.base_format import BaseFormat, takes_rounding
from bitquilt.converted.moments import BaseMoments
from bitquilt.converted.rounding import (
    BaseExpert,
    factor_of,
    input_batches,
    outputs_factor,
    takes_feedback,
    weight_of,
)
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.round_matrices import RoundingJob, round_once
from bitquilt.rounding.row_batches import RoundedRows
from bitquilt.rounding.row_sample import sample_rows
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.progress import Progress

DRAWN_ROWS = 128
"""Rows of a matrix that are drawn."""
DRAWN_OF_TABLES = 2048
"""Those of an embedding or head, whose rows differ most."""
TRIED_WEIGHTS = 1 << 27
"""Weights, counted once for each type, that a GPU tries at once."""
DRAWN_EXPERTS = 8
"""Experts of a stack that are looked at, spread over those that were reached."""
_TINY = 1e-30

Nats = dict[str, dict[str, float]]
"""Name of a matrix → type → what it is predicted to cost, in nats per token."""


def predicted_nats(
    base: BaseFormat,
    moments: BaseMoments,
    types: Mapping[str, Sequence[str]],
    method: str,
    progress: Progress,
) -> Nats:
    """Predict what every candidate costs.

    Args:
        base: has the matrices.
        moments: what is known of them.
        types: the candidates of each matrix.
        method: one of :data:`bitquilt.rounding.METHODS`.
        progress: advances by one for each matrix.

    Returns:
        a number for each candidate: 0 for the type that the base has, and of matrices of which
        nothing is known.
    """
    found: Nats = {name: dict.fromkeys(own, 0.0) for name, own in types.items()}
    scale: dict[BaseExpert, float] = {}
    for name in filter(moments.is_known, types):
        drawn = _drawn_experts(base, moments, name)
        if not drawn or not takes_feedback(base, moments, name):
            found[name] |= _without_feedback(base, moments, name, types[name])
            progress.advance()
            continue
        share = _all_rows(base, moments, name) / max(
            sum(_rows_total(base, moments, each) for each in drawn), _TINY
        )
        scale |= dict.fromkeys(drawn, share)
    last = {expert.name: expert for expert in scale}
    for inputs in input_batches(base, moments, list(scale)):
        factor = factor_of(moments, inputs, progress)
        tried = (
            _Tried(base, moments, expert, place, types[expert.name], method)
            for place, own in enumerate(inputs)
            for expert in own
        )
        for some in _together(tried):
            jobs = [job for one in some for job in one.jobs]
            done = iter(round_once(jobs, factor, method != "nearest"))
            for one in some:
                own = one.costs(done)
                for qtype, nats in own.items():
                    found[one.expert.name][qtype] += nats * scale[one.expert]
                if last[one.expert.name] == one.expert:
                    progress.advance()
    return found


class _Tried:
    """A few rows of one matrix, to be rounded onto its candidates."""

    def __init__(
        self,
        base: BaseFormat,
        moments: BaseMoments,
        expert: BaseExpert,
        place: int,
        types: Sequence[str],
        method: str,
    ) -> None:
        self.expert = expert
        weight, rows = weight_of(base, expert), _rows_of(base, moments, expert)
        outputs = outputs_factor(base, moments, expert, method)
        if outputs is not None:  # rows that come later make up for a part
            rows = rows * outputs.shares[outputs.order.argsort()].double().cpu()
        self._sample = sample_rows(rows, DRAWN_ROWS)
        self._rows = rows[self._sample.rows]
        drawn = weight[self._sample.rows.to(weight.device)]
        self._names = [qtype for qtype in types if takes_rounding(qtype)]
        self.jobs = [RoundingJob(drawn, qtypes.get(qtype), place) for qtype in self._names]

    def costs(self, done: Iterator[RoundedRows]) -> dict[str, float]:
        """Take what became of the jobs; return what each type costs, in nats per token."""
        found = {}
        for qtype, one in zip(self._names, done, strict=False):
            assert one.costs is not None
            found[qtype] = 0.5 * self._sample.total(one.costs.double().cpu() * self._rows)
        return found


def _together(tried: Iterable[_Tried]) -> Iterator[list[_Tried]]:
    """Group what a GPU tries at once; on a CPU, which has less memory, each goes on its own."""
    most = 0 if compute_device().type == "cpu" else TRIED_WEIGHTS
    group, weights = list[_Tried](), 0
    for one in tried:
        own = sum(job.weight.numel() for job in one.jobs)
        if group and weights + own > most:
            yield group
            group, weights = [], 0
        group.append(one)
        weights += own
    if group:
        yield group


def _without_feedback(
    base: BaseFormat,
    moments: BaseMoments,
    name: str,
    names: Sequence[str],
) -> dict[str, float]:
    """What types cost a matrix that is rounded to the nearest: an embedding, or the head."""
    count = base.matrices[name].rows
    logits = moments.rows(name, 0, count)
    table = moments.looked_up(name, count)
    shares = torch.zeros(count, dtype=torch.float64)
    for weights in (logits, None if table is None else table[1].double()):
        if weights is not None and weights.sum() > 0:
            shares += weights / weights.sum()
    sample = sample_rows(shares, DRAWN_OF_TABLES)
    drawn = sample.rows
    weight = weight_of(base, BaseExpert(name, 0))[drawn.to(compute_device())]
    hessian = moments.hessian(name, 0)
    importance = moments.importance(name, 0)
    found = {}
    for qtype in filter(takes_rounding, names):
        fields = fit(qtypes.get(qtype), weight, importance)
        error = (qtypes.get(qtype).decode(fields) - weight).cpu()
        costs = torch.zeros(len(drawn), dtype=torch.float64)
        if logits is not None and hessian is not None:
            costs += ((error @ hessian.cpu()) * error).sum(1).double() * logits[drawn]
        elif logits is not None and importance is not None:
            costs += (error.square() @ importance).double() * logits[drawn]
        if table is not None:
            costs += (error.square().double() @ table[0].double()) * table[1][drawn].double()
        found[qtype] = 0.5 * base.matrices[name].experts * sample.total(costs)
    return found


def _rows_of(base: BaseFormat, moments: BaseMoments, expert: BaseExpert) -> Tensor:
    count = base.matrices[expert.name].rows
    rows = moments.rows(expert.name, expert.index, count)
    return torch.zeros(count, dtype=torch.float64) if rows is None else rows


def _rows_total(base: BaseFormat, moments: BaseMoments, expert: BaseExpert) -> float:
    return float(_rows_of(base, moments, expert).sum())


def _all_rows(base: BaseFormat, moments: BaseMoments, name: str) -> float:
    experts = range(base.matrices[name].experts)
    return sum(_rows_total(base, moments, BaseExpert(name, index)) for index in experts)


def _drawn_experts(base: BaseFormat, moments: BaseMoments, name: str) -> list[BaseExpert]:
    """Some experts, evenly among those that have a Hessian."""
    reached = [
        index
        for index in range(base.matrices[name].experts)
        if moments.inputs(name, index) is not None
    ]
    step = max(1, len(reached) // DRAWN_EXPERTS)
    return [BaseExpert(name, index) for index in reached[::step]]
