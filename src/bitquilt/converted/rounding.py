"""The matrices of a base on types: with error feedback under the Hessians of what they read.

Matrices and experts that read one input are rounded from one factorization, and several inputs of
equal width go through together.

Letters: E experts of a stack, R rows of each, C columns, L inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from bitquilt import qtypes
from bitquilt.converted.formats.base_format import BaseFormat, takes_rounding
from bitquilt.converted.moments import BaseMoments, Inputs
from bitquilt.qtypes.qtype import Allocation, Packed, QuantType
from bitquilt.qtypes.rows import rows_within
from bitquilt.rounding.costs import polishing_seconds, rounding_seconds
from bitquilt.rounding.hessian import COLUMN_GROUP, Factor, factorize
from bitquilt.rounding.input_work import HESSIAN_BYTES, TABLE_WEIGHTS, memory_of_device
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.output_feedback import OutputFactor, factorize_outputs
from bitquilt.rounding.round_matrices import RoundingJob, round_matrices
from bitquilt.rounding.row_batches import RoundedRows
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir

EXPERTS_BYTES = 8 << 30
"""Hessians and their factors that go through a GPU together: it is the faster, the more experts
there are."""


@dataclass(frozen=True)
class BaseExpert:
    """One matrix of a base, or one of a stack."""

    name: str
    index: int


def weight_of(base: BaseFormat, expert: BaseExpert) -> Tensor:
    """Return one matrix of a base, float32 [R, C], on the device."""
    return base.read(expert.name, expert.index).contiguous()


def takes_feedback(base: BaseFormat, moments: BaseMoments, name: str) -> bool:
    """Tell whether a matrix is rounded with error feedback, if its inputs have a Hessian."""
    return not moments.is_table(name) and base.matrices[name].columns % COLUMN_GROUP == 0


def input_batches(
    base: BaseFormat, moments: BaseMoments, experts: Sequence[BaseExpert]
) -> Iterator[list[list[BaseExpert]]]:
    """Group what reads one input, and as many inputs of equal width as memory is meant for."""
    readers: dict[Inputs, list[BaseExpert]] = {}
    for expert in experts:
        key = moments.inputs(expert.name, expert.index)
        assert key is not None
        readers.setdefault(key, []).append(expert)

    def width(own: list[BaseExpert]) -> int:
        return base.matrices[own[0].name].columns

    room = memory_of_device().input_bytes if compute_device().type == "cpu" else EXPERTS_BYTES
    for columns, same in groupby(sorted(readers.values(), key=width), width):
        inputs = list(same)
        step = max(1, room // (HESSIAN_BYTES * columns**2))
        for start in range(0, len(inputs), step):
            yield inputs[start : start + step]


def factor_of(
    moments: BaseMoments, inputs: Sequence[Sequence[BaseExpert]], progress: Progress
) -> Factor:
    """Factorize the Hessians of some inputs, each with its readers."""
    hessians = []
    for own in inputs:
        hessian = moments.hessian(own[0].name, own[0].index)
        assert hessian is not None
        hessians.append(hessian)
    names = [own[0].name for own in inputs]
    return factorize(torch.stack(hessians).to(compute_device()), names, progress)


def outputs_factor(
    base: BaseFormat, moments: BaseMoments, expert: BaseExpert, method: str
) -> OutputFactor | None:
    """Factorize the output gradients of a matrix, for rows that make up for each other.

    Returns:
        None where they are not known, and where rows are rounded to the nearest.
    """
    if method == "nearest":
        return None
    rows = base.matrices[expert.name].rows
    moment = moments.output_moment(expert.name, expert.index, rows)
    return None if moment is None else factorize_outputs(moment.to(compute_device()), expert.name)


def round_base(
    base: BaseFormat,
    moments: BaseMoments,
    types: Allocation,
    method: str,
    work: WorkDir,
    progress: Progress,
) -> Callable[[str, str], Packed | None]:
    """Round all matrices onto their types; what the work directory has is not done again.

    Args:
        base: has the matrices.
        moments: what is known of them.
        types: of every matrix.
        method: one of :data:`bitquilt.rounding.METHODS`.
        work: keeps every matrix that is done.
        progress: advances by :func:`base_rounding_work` in all.

    Returns:
        What gives a matrix as stored; None for types that are not rounded here, and for matrices
        of which nothing is known.
    """

    def place(name: str, qtype: str) -> str:
        return _place(base, name, qtype, method)

    missing = {
        name: qtype
        for name, qtype in missing_matrices(base, types, method, work).items()
        if moments.is_known(name)
    }
    progress.advance(base_rounding_work(base, types) - base_rounding_work(base, missing))
    finished = _Rounder(base, moments, missing, method, progress).rounded()
    for name, packed in finished:
        work.save(place(name, missing[name]), packed, {})

    def rounded(name: str, qtype: str) -> Packed | None:
        return work.load(place(name, qtype)) if work.has(place(name, qtype)) else None

    return rounded


def missing_matrices(
    base: BaseFormat, types: Allocation, method: str, work: WorkDir
) -> dict[str, str]:
    """Return those of some matrices, with their types, that are rounded and are not yet."""
    return {
        name: qtype
        for name, qtype in types.items()
        if takes_rounding(qtype) and not work.has(_place(base, name, qtype, method))
    }


def _place(base: BaseFormat, name: str, qtype: str, method: str) -> str:
    return f"rounded/{base.target}-{base.fingerprint}/{name}/{qtype}-{method}"


def base_rounding_work(base: BaseFormat, types: Allocation) -> float:
    """Return what rounding takes, in seconds of the machine that forecasts are made by."""
    return sum(
        rounding_seconds(qtype, base.matrices[name].weights)
        + polishing_seconds(qtype, base.matrices[name].weights)
        for name, qtype in types.items()
        if takes_rounding(qtype)
    )


class _Rounder:
    """Rounds whole matrices, and gives each when all of its experts are done."""

    def __init__(
        self,
        base: BaseFormat,
        moments: BaseMoments,
        types: Mapping[str, str],
        method: str,
        progress: Progress,
    ) -> None:
        self._base, self._moments, self._types = base, moments, types
        self._method, self._progress = method, progress
        self._parts: dict[str, dict[int, Packed]] = {}

    def rounded(self) -> Iterator[tuple[str, Packed]]:
        """Yield names with what they became."""
        with_hessian: list[BaseExpert] = []
        for name in self._types:
            feedback = takes_feedback(self._base, self._moments, name)
            for index in range(self._base.matrices[name].experts):
                expert = BaseExpert(name, index)
                if feedback and self._moments.inputs(name, index) is not None:
                    with_hessian.append(expert)
                else:
                    yield from self._keep(expert, self._nearest(expert))
        for inputs in input_batches(self._base, self._moments, with_hessian):
            experts = [expert for own in inputs for expert in own]
            for expert, packed in zip(experts, self._together(inputs), strict=True):
                yield from self._keep(expert, packed)

    def _together(self, inputs: Sequence[Sequence[BaseExpert]]) -> list[Packed]:
        """Round all readers of some inputs."""
        factor = factor_of(self._moments, inputs, self._progress)
        jobs = [
            RoundingJob(
                weight_of(self._base, expert), self._qtype(expert), place, self._outputs(expert)
            )
            for place, own in enumerate(inputs)
            for expert in own
        ]
        done: list[RoundedRows] = round_matrices(jobs, factor, self._method)
        return [job.qtype.pack(one.fields) for job, one in zip(jobs, done, strict=True)]

    def _nearest(self, expert: BaseExpert) -> Packed:
        """Round to nearest levels, some rows at a time: tables are large."""
        weight, qtype = weight_of(self._base, expert), self._qtype(expert)
        importance = self._moments.importance(expert.name, expert.index)
        step = rows_within(TABLE_WEIGHTS, weight.shape[1])
        parts = [qtype.pack(fit(qtype, rows, importance)) for rows in weight.split(step)]
        return {part: torch.cat([one[part] for one in parts]) for part in parts[0]}

    def _qtype(self, expert: BaseExpert) -> QuantType:
        return qtypes.get(self._types[expert.name])

    def _outputs(self, expert: BaseExpert) -> OutputFactor | None:
        return outputs_factor(self._base, self._moments, expert, self._method)

    def _keep(self, expert: BaseExpert, packed: Packed) -> Iterator[tuple[str, Packed]]:
        """Take one expert; yield the matrix if it was the last one."""
        matrix = self._base.matrices[expert.name]
        parts = self._parts.setdefault(expert.name, {})
        parts[expert.index] = {part: tensor.cpu() for part, tensor in packed.items()}
        work = base_rounding_work(self._base, {expert.name: self._types[expert.name]})
        self._progress.advance(work / matrix.experts)
        if len(parts) == matrix.experts:
            done = [parts[index] for index in range(matrix.experts)]
            del self._parts[expert.name]
            yield expert.name, {part: torch.cat([one[part] for one in done]) for part in done[0]}
