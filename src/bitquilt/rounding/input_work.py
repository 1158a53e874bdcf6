"""Rounding of all matrices that read some inputs at a time, under one factorization, into the bank.

The steps differ in what is kept: what a search chooses from, an estimate from a few rows, what a
file is to have. :mod:`.round_layers` says which inputs go together when.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from bitquilt import qtypes
from bitquilt.calibration.block_moments import input_of
from bitquilt.models.checkpoint import EMBEDDING, HEAD
from bitquilt.qtypes.qtype import Packed, QuantType
from bitquilt.qtypes.rows import rows_within
from bitquilt.rounding.costs import polishing_seconds, rounding_seconds
from bitquilt.rounding.hessian import Factor, factorize, stacked
from bitquilt.rounding.layer_bank import (
    ESTIMATED,
    GIVEN,
    POLISHED,
    ROUNDED,
    BankCell,
    Candidates,
    CellKey,
    LayerBank,
)
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.output_feedback import OUTPUT_BYTES, outputs_of
from bitquilt.rounding.round_matrices import (
    RoundingJob,
    kind_of_qtype,
    measure_rounded,
    polish,
    round_once,
)
from bitquilt.rounding.row_sample import RowSample, sample_rows
from bitquilt.runtime.device import compute_device, record_event
from bitquilt.runtime.malloc import trim
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.threads import BackgroundTask
from bitquilt.runtime.transfer import moved

TABLE_WEIGHTS = 1 << 24
"""So many weights of an embedding or a head are rounded at once; it has no Hessian to share."""
WEIGHT_BYTES, HESSIAN_BYTES = 4, 16
"""What a weight takes in memory, and an entry of a Hessian with its factors."""

PackedCell = tuple[Packed, BankCell]
"""A matrix on a type, and what the bank is to know of it."""
ByInput = Mapping[str, Candidates]
"""Input → types of the matrices that read it."""


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """How much of a model is in memory at once while it is rounded."""

    input_bytes: int
    """About so many bytes of weights and Hessians: those of many layers of a tiny model, of one
    input of others."""
    cell_weights: int
    """So many weights, counted once for each type."""
    least_inputs: int = 1
    """So many inputs of equal width go together, however large they are."""


# of a wide input, a part of the rows of one matrix is too little for two threads
CPU_MEMORY = MemoryUse(input_bytes=1 << 28, cell_weights=1 << 26, least_inputs=2)
DEVICE_MEMORY = MemoryUse(input_bytes=2 << 30, cell_weights=1 << 28)


def memory_of_device() -> MemoryUse:
    """Return how much the device that is computed on has room for."""
    return CPU_MEMORY if compute_device().type == "cpu" else DEVICE_MEMORY


@dataclass(frozen=True)
class _Jobs:
    """What to round of the readers of some inputs."""

    keys: list[CellKey]
    jobs: list[RoundingJob]
    factor: Factor


@dataclass(frozen=True)
class InputWork:
    """Rounds the matrices of some inputs at a time, and puts them into the bank."""

    bank: LayerBank
    progress: Progress
    background: BackgroundTask
    """Writes results while the next inputs are worked on: a disk takes as long as a GPU."""
    memory: MemoryUse

    def batches(self, owners: Iterable[str]) -> Iterator[list[str]]:
        """Group inputs of equal width, as many at a time as memory is meant for."""
        shapes = self.bank.checkpoint.matrices
        reads = Counter[str]()  # bytes of the matrices that read an input
        for module, (rows, columns) in shapes.items():
            reads[input_of(module)] += WEIGHT_BYTES * rows * columns + OUTPUT_BYTES * rows**2

        def width(owner: str) -> int:
            return shapes[owner][1]

        def nbytes(owner: str) -> int:
            return reads[owner] + HESSIAN_BYTES * width(owner) ** 2

        for _, own in groupby(sorted(owners, key=width), width):
            room, least = self.memory.input_bytes, self.memory.least_inputs
            yield from _split_by_size(own, nbytes, room, least)

    def round_inputs(self, owners: Sequence[str], wanted: ByInput) -> None:
        """Round what reads some inputs for the first time."""

        def round_jobs(
            keys: Sequence[CellKey], jobs: Sequence[RoundingJob], factor: Factor
        ) -> Iterator[PackedCell]:
            rounded = round_once(jobs, factor, self._feedback)
            for (module, _), job, one in zip(keys, jobs, rounded, strict=True):
                assert one.costs is not None
                predicted = self.bank.statistics.predicted_kl_of_rows(module, one.costs).sum()
                own = job.qtype.pack(one.fields), self._cell(float(predicted), one.method)
                yield self._or_given(module, job, factor, own)

        self._call_on_jobs(self._jobs(owners, wanted), round_jobs, ROUNDED)

    def _or_given(
        self, module: str, job: RoundingJob, factor: Factor, own: PackedCell
    ) -> PackedCell:
        """Return the cheapest of a matrix of ours and those that files give on the same type."""
        statistics, best = self.bank.statistics, own
        for given in self.bank.given.get((module, job.qtype.name), ()):
            (packed,) = moved([given.packed()], job.weight.device)
            costs = measure_rounded(job, job.qtype.unpack(packed), factor)
            predicted = float(statistics.predicted_kl_of_rows(module, costs).sum())
            if predicted < best[1].predicted_kl:
                best = packed, self._cell(predicted, GIVEN)
        return best

    def estimate_inputs(self, owners: Sequence[str], wanted: ByInput) -> None:
        """Round a few rows of what reads some inputs, and keep what they tell of all."""
        jobs, samples = self._sampled(self._jobs(owners, wanted))

        def estimate_jobs(
            keys: Sequence[CellKey], jobs: Sequence[RoundingJob], factor: Factor
        ) -> Iterator[PackedCell]:
            rounded = round_once(jobs, factor, self._feedback)
            for (module, _), one in zip(keys, rounded, strict=True):
                assert one.costs is not None
                rows = samples[module].rows
                costs = self.bank.statistics.predicted_kl_of_rows(module, one.costs, rows)
                yield {}, self._cell(samples[module].total(costs), one.method)

        self._call_on_jobs(jobs, estimate_jobs, ESTIMATED)

    def finish_inputs(self, owners: Sequence[str], wanted: ByInput) -> None:
        """Round what reads some inputs, and polish it at once: what it was before is not kept."""

        def finish_jobs(
            keys: Sequence[CellKey], jobs: Sequence[RoundingJob], factor: Factor
        ) -> Iterator[PackedCell]:
            rounded = round_once(jobs, factor, self._feedback)
            polished = polish(jobs, [one.fields for one in rounded], factor)
            for (module, _), job, before, one in zip(keys, jobs, rounded, polished, strict=True):
                assert before.costs is not None
                predicted = self.bank.statistics.predicted_kl_of_rows(module, before.costs).sum()
                yield job.qtype.pack(one.fields), BankCell(float(predicted), "full", one.method)

        self._call_on_jobs(self._jobs(owners, wanted), finish_jobs, POLISHED)

    def _sampled(self, whole: _Jobs) -> tuple[_Jobs, dict[str, RowSample]]:
        """Cut jobs down to a few rows of each matrix.

        Rows that later chunks make up for count for what is left of them.
        """
        statistics, samples, jobs = self.bank.statistics, dict[str, RowSample](), []
        cut: dict[str, Tensor] = {}
        for (module, _), job in zip(whole.keys, whole.jobs, strict=True):
            if module not in samples:
                own = statistics.importance(module).to(job.weight.device)
                sizes = statistics.predicted_kl(module, job.weight, own)
                sample = sample_rows(sizes)
                if job.outputs is not None:
                    left = job.outputs.shares[job.outputs.order.argsort()].cpu().double()
                    sample = replace(sample, stands_for=sample.stands_for * left[sample.rows])
                samples[module] = sample
                cut[module] = job.weight[sample.rows.to(job.weight.device)]
            jobs.append(replace(job, weight=cut[module], outputs=None))
        return replace(whole, jobs=jobs), samples

    def polish_inputs(self, owners: Sequence[str], wanted: ByInput) -> None:
        """Polish what reads some inputs; the predictions stay those that the search knew."""
        bank = self.bank

        def polish_jobs(
            keys: Sequence[CellKey], jobs: Sequence[RoundingJob], factor: Factor
        ) -> Iterator[PackedCell]:
            packed = moved([bank.packed(*key) for key in keys], factor.groups.device)
            before = [job.qtype.unpack(parts) for job, parts in zip(jobs, packed, strict=True)]
            cells = {module: bank.cells(module) for module in {module for module, _ in keys}}
            polished = polish(jobs, before, factor)
            for (module, name), job, one in zip(keys, jobs, polished, strict=True):
                cell = replace(cells[module][name], rounding="full", kept=one.method)
                yield job.qtype.pack(one.fields), cell

        self._call_on_jobs(self._jobs(owners, wanted), polish_jobs, POLISHED)

    def round_without_hessian(self, module: str, names: Sequence[str]) -> None:
        """Round a matrix to its nearest levels."""
        bank, statistics = self.bank, self.bank.statistics
        weight = bank.checkpoint.load(f"{module}.weight", compute_device())
        hessian, importance = statistics.hessian(module), statistics.importance(module)

        def cost(qtype: QuantType, packed: Packed, rows: slice) -> float:
            error = qtype.dequantize(packed).sub_(weight[rows])
            return float(statistics.predicted_kl(module, error, hessian, rows).sum())

        for name in names:
            qtype = qtypes.get(name)
            parts, predicted = [], 0.0
            for rows in _table_rows(*weight.shape):
                parts.append(qtype.pack(fit(qtype, weight[rows], importance)))
                predicted += cost(qtype, parts[-1], rows)
                table = module in (EMBEDDING, HEAD)
                size = weight[rows].numel()
                self.progress.advance(rounding_seconds(name, size, table=table))
            packed = {part: torch.cat([some[part] for some in parts]) for part in parts[0]}
            cell = BankCell(predicted, bank.rounding, "nearest")
            for given in bank.given.get((module, name), ()):
                (other,) = moved([given.packed()], weight.device)
                predicted = sum(
                    cost(qtype, {part: data[rows] for part, data in other.items()}, rows)
                    for rows in _table_rows(*weight.shape)
                )
                if predicted < cell.predicted_kl:
                    packed, cell = other, replace(cell, predicted_kl=predicted, kept=GIVEN)
            done: dict[CellKey, PackedCell] = {}
            self.background.do(_fetch, done, [(module, name)], [packed], [cell], record_event())
            self.background.do(bank.add, ROUNDED, done)

    def estimate_without_hessian(self, module: str, names: Sequence[str]) -> None:
        """Round a few rows of a matrix to their nearest levels, and keep what they tell of all."""
        bank, statistics = self.bank, self.bank.statistics
        weight = bank.checkpoint.load(f"{module}.weight", compute_device())
        hessian, importance = statistics.hessian(module), statistics.importance(module)
        sample = sample_rows(statistics.predicted_kl(module, weight, hessian.diagonal()))
        weight = weight[sample.rows.to(weight.device)]
        done: dict[CellKey, PackedCell] = {}
        for name in names:
            qtype = qtypes.get(name)
            error = qtype.decode(fit(qtype, weight, importance)).sub_(weight)
            costs = statistics.predicted_kl(module, error, hessian, sample.rows)
            done[module, name] = {}, BankCell(sample.total(costs), bank.rounding, "nearest")
            table = module in (EMBEDDING, HEAD)
            self.progress.advance(rounding_seconds(name, bank.weights(module), table=table))
        bank.add(ESTIMATED, done)

    @property
    def _feedback(self) -> bool:
        return self.bank.rounding != "nearest"

    def _cell(self, predicted: float, kept: str) -> BankCell:
        """Return a cell of a matrix that is not polished."""
        return BankCell(predicted, "gptq" if self._feedback else "nearest", kept)

    def _call_on_jobs(
        self,
        of: _Jobs,
        function: Callable[
            [Sequence[CellKey], Sequence[RoundingJob], Factor], Iterable[PackedCell]
        ],
        folder: str,
    ) -> None:
        """Call a function on what reads some inputs, under one factorization; keep its results."""
        keys, jobs = of.keys, of.jobs
        by_kind = sorted(range(len(jobs)), key=lambda i: repr(kind_of_qtype(jobs[i].qtype)))
        done: dict[CellKey, PackedCell] = {}
        room = self.memory.cell_weights
        for part in _split_by_size(by_kind, lambda i: jobs[i].weight.numel(), room):
            own = [keys[i] for i in part]
            packed, cells = zip(*function(own, [jobs[i] for i in part], of.factor), strict=True)
            self.background.do(_fetch, done, own, packed, cells, record_event())
            cost = polishing_seconds if folder == POLISHED else rounding_seconds
            self.progress.advance(sum(cost(name, self.bank.weights(m)) for m, name in own))
        self.background.do(self.bank.add, folder, done)

    def _jobs(self, owners: Sequence[str], wanted: ByInput) -> _Jobs:
        """List what to round of some inputs' readers; factorize."""
        bank, device = self.bank, compute_device()
        hessians = stacked([bank.statistics.hessian(owner) for owner in owners]).to(device)
        factor = factorize(hessians, owners, self.progress)
        keys, jobs = [], []
        for place, owner in enumerate(owners):
            for module, names in wanted[owner].items():
                weight = bank.checkpoint.load(f"{module}.weight", device)
                outputs = outputs_of(bank.statistics, module) if self._feedback else None
                keys += [(module, name) for name in names]
                jobs += [RoundingJob(weight, qtypes.get(name), place, outputs) for name in names]
        return _Jobs(keys, jobs, factor)


def _table_rows(rows: int, columns: int) -> Iterator[slice]:
    """Cut a table into parts of about ``TABLE_WEIGHTS``, between rows that ``by_rows`` cuts too."""
    step = rows_within(TABLE_WEIGHTS, columns)
    for start in range(0, rows, step):
        yield slice(start, start + step)


def _fetch(
    done: dict[CellKey, PackedCell],
    keys: Sequence[CellKey],
    packed: Sequence[Packed],
    cells: Sequence[BankCell],
    after: torch.cuda.Event | None,
) -> None:
    """Add matrices to what is done, in the CPU's memory, while a GPU computes the next."""
    there = moved(packed, torch.device("cpu"), after)
    done |= zip(keys, zip(there, cells, strict=True), strict=True)


def free_memory() -> None:
    """Return free memory where matrices are rounded: other inputs need blocks of other sizes."""
    if compute_device().type == "cpu":
        trim()
    else:
        torch.cuda.empty_cache()


SizedItem = TypeVar("SizedItem")


def _split_by_size(
    items: Iterable[SizedItem], size: Callable[[SizedItem], int], room: int, least: int = 1
) -> Iterator[list[SizedItem]]:
    """Items in order, as many at a time as fit a room, and so many whether they fit it or not."""
    own: list[SizedItem] = []
    taken = 0
    for item in items:
        if len(own) >= least and taken + size(item) > room:
            yield own
            own, taken = [], 0
        own.append(item)
        taken += size(item)
    if own:
        yield own
