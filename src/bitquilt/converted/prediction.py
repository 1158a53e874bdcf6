"""What each type costs a matrix, in nats per token, from a sample of its rows.

The KL of an error is ½ Σ_r b_r ΔW_r H ΔW_rᵀ (:mod:`bitquilt.bases.fisher`), and that of an
embedding ½ Σ_v f_v Σ_c g_c ΔW_vc². Both are sums over rows, which are rounded independently. So
rows are drawn as often as they count (:mod:`bitquilt.rounding.row_sample`), rounded as the whole
matrix would be, and the sum is estimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from bitquilt.rounding.row_sample import sample_rows
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.progress import Progress

DRAWN_ROWS = 128
"""Rows of a matrix that are drawn."""
DRAWN_OF_TABLES = 2048
"""Those of an embedding or head, whose rows differ most."""
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
        for place, own in enumerate(inputs):
            for expert in own:
                weight = weight_of(base, expert)
                rows = _rows_of(base, moments, expert)
                outputs = outputs_factor(base, moments, expert, method)
                if outputs is not None:  # rows that come later make up for a part
                    rows = rows * outputs.shares[outputs.order.argsort()].double().cpu()
                names = [qtype for qtype in types[expert.name] if takes_rounding(qtype)]
                sample = sample_rows(rows, DRAWN_ROWS)
                some = weight[sample.rows.to(weight.device)]
                jobs = [RoundingJob(some, qtypes.get(qtype), place) for qtype in names]
                done = round_once(jobs, factor, method != "nearest")
                for qtype, one in zip(names, done, strict=True):
                    assert one.costs is not None
                    costs = one.costs.double().cpu() * rows[sample.rows]
                    found[expert.name][qtype] += 0.5 * sample.total(costs) * scale[expert]
                if last[expert.name] == expert:
                    progress.advance()
    return found


def _without_feedback(
    base: BaseFormat,
    moments: BaseMoments,
    name: str,
    names: Sequence[str],
) -> dict[str, float]:
    """What types cost a matrix that is rounded to the nearest: an embedding, or the head."""
    count = base.matrices[name].rows
    logits = moments.rows(name, 0, count)
    table = moments.looked_up(name)
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
