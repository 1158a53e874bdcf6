"""Rounding of a whole model into its layer bank, as many inputs at a time as memory holds.

Matrices that read one input are rounded together, from one factorization of its Hessian. So a run
that was stopped rounds together what it would have rounded together without the stop, and ends
with the same bytes. Only what the bank does not have yet is rounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

import torch

from bitquilt import qtypes
from bitquilt.calibration.collect import input_of
from bitquilt.models.checkpoint import EMBEDDING, HEAD
from bitquilt.qtypes.qtype import Packed
from bitquilt.qtypes.rows import rows_within
from bitquilt.rounding import kernels
from bitquilt.rounding.costs import polishing_seconds, rounding_seconds
from bitquilt.rounding.hessian import COLUMN_GROUP, Factor, factorize
from bitquilt.rounding.layer_bank import (
    POLISHED,
    ROUNDED,
    BankCell,
    Candidates,
    CellKey,
    LayerBank,
)
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.output_feedback import OUTPUT_BYTES, outputs_of
from bitquilt.rounding.round_matrices import RoundingJob, kind_of_qtype, polish, round_once
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

_reported: set[str] = set()
"""Why kernels do not compile here, as far as it has been said."""


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """How much of a model is in memory at once while it is rounded."""

    input_bytes: int
    """About so many bytes of weights and Hessians: those of many layers of a tiny model, of one
    input of others."""
    cell_weights: int
    """So many weights, counted once for each type."""


CPU_MEMORY = MemoryUse(input_bytes=1 << 28, cell_weights=1 << 26)
DEVICE_MEMORY = MemoryUse(input_bytes=2 << 30, cell_weights=1 << 29)


def round_layers(
    bank: LayerBank, candidates: Candidates, progress: Progress, memory: MemoryUse | None = None
) -> None:
    """Round what the bank does not have yet, well enough to choose from.

    The first step of rounding is taken: polishing costs several times as much and changes little
    about which type is better than which, so :func:`polish_layers` does it for what was chosen.

    Args:
        bank: where the matrices go.
        candidates: what to round.
        progress: advances by :func:`rounding_work` in all; told by name what could not be rounded
            as usual.
        memory: how much is in memory at once; as the device has room, if not given.

    Raises:
        UserError: a matrix does not fit its type, or its Hessian holds numbers that are not finite.
    """
    missing = _missing(bank, candidates)
    if missing and bank.rounding != "nearest":
        _say_if_kernels_are_missing(progress)
    alone = [owner for owner in missing if not _takes_feedback(bank, owner)]
    with BackgroundTask() as background:
        work = _Work(bank, progress, background, memory or _memory_of_device())
        for owner in alone:
            for module, names in missing.pop(owner).items():
                work.round_without_hessian(module, names)
        for owners in work.batches(missing):
            work.round_inputs(owners, missing)
            _free_memory()


def polish_layers(
    bank: LayerBank, chosen: Candidates, progress: Progress, memory: MemoryUse | None = None
) -> None:
    """Polish what was chosen, where the bank's method is ``full``; else do nothing.

    Args:
        bank: has all that was chosen.
        chosen: what to polish.
        progress: advances by :func:`polishing_work` in all.
        memory: how much is in memory at once; as the device has room, if not given.
    """
    rough = _unpolished(bank, chosen)
    with BackgroundTask() as background:
        work = _Work(bank, progress, background, memory or _memory_of_device())
        for owners in work.batches(rough):
            work.polish_inputs(owners, rough)
            _free_memory()


def rounding_work(bank: LayerBank, candidates: Candidates) -> float:
    """Return by how much :func:`round_layers` is going to advance: what is there costs nothing."""
    return sum(
        rounding_seconds(name, bank.weights(module), table=module in (EMBEDDING, HEAD))
        for readers in _missing(bank, candidates).values()
        for module, names in readers.items()
        for name in names
    )


def polishing_work(bank: LayerBank, chosen: Candidates) -> float:
    """Return by how much :func:`polish_layers` is going to advance."""
    return sum(
        polishing_seconds(name, bank.weights(module))
        for readers in _unpolished(bank, chosen).values()
        for module, names in readers.items()
        for name in names
    )


def _missing(bank: LayerBank, candidates: Candidates) -> dict[str, dict[str, list[str]]]:
    """Return by input what the bank does not have yet."""
    missing: dict[str, dict[str, list[str]]] = {}
    for module, names in candidates.items():
        have = bank.cells(module).keys()
        if new := [name for name in names if name not in have]:
            missing.setdefault(input_of(module), {})[module] = new
    return missing


def _unpolished(bank: LayerBank, chosen: Candidates) -> dict[str, dict[str, list[str]]]:
    """Return by input what can be polished and is not yet."""
    rough: dict[str, dict[str, list[str]]] = {}
    for module, names in chosen.items():
        owner, have = input_of(module), bank.cells(module, POLISHED)
        polishable = bank.rounding == "full" and _takes_feedback(bank, owner)
        # a float has nothing to polish
        left = [
            name
            for name in names
            if polishable and name not in have and kind_of_qtype(qtypes.get(name)) is not None
        ]
        if left:
            rough.setdefault(owner, {})[module] = left
    return rough


def _say_if_kernels_are_missing(progress: Progress) -> None:
    """Say once in a process, however many banks and formats it rounds for."""
    if compute_device().type != "cuda" or (cause := kernels.compile_error()) is None:
        return
    if cause not in _reported:
        _reported.add(cause)
        instead = "rounding uses torch's operations instead, and takes half as long again"
        progress.say(f"bitquilt's kernels for GPUs do not compile here ({cause}); {instead}")


def _memory_of_device() -> MemoryUse:
    return CPU_MEMORY if compute_device().type == "cpu" else DEVICE_MEMORY


def _takes_feedback(bank: LayerBank, owner: str) -> bool:
    """Tell whether error feedback makes sense for what reads an input.

    It does not for an embedding or a head: tokens are read and predicted at places so different
    that one Hessian for all rows does not help (docs/decisions/gptq.md). Nor does it for rows that
    are not a whole number of groups, which take no type but the floats.
    """
    columns = bank.checkpoint.matrices[owner][1]
    return owner not in (EMBEDDING, HEAD) and columns % COLUMN_GROUP == 0


@dataclass(frozen=True)
class _Work:
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
            yield from _split_by_size(own, nbytes, self.memory.input_bytes)

    def round_inputs(self, owners: Sequence[str], wanted: ByInput) -> None:
        """Round what reads some inputs for the first time."""
        feedback = self.bank.rounding != "nearest"
        method = "gptq" if feedback else "nearest"

        def round_jobs(
            keys: Sequence[CellKey], jobs: Sequence[RoundingJob], factor: Factor
        ) -> Iterator[PackedCell]:
            rounded = round_once(jobs, factor, feedback)
            for (module, _), job, one in zip(keys, jobs, rounded, strict=True):
                assert one.costs is not None
                predicted = self.bank.statistics.predicted_kl_of_rows(module, one.costs)
                yield job.qtype.pack(one.fields), BankCell(predicted, method, one.method)

        self._call_on_jobs(owners, wanted, round_jobs, ROUNDED)

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

        self._call_on_jobs(owners, wanted, polish_jobs, POLISHED)

    def round_without_hessian(self, module: str, names: Sequence[str]) -> None:
        """Round a matrix to its nearest levels."""
        bank, statistics = self.bank, self.bank.statistics
        weight = bank.checkpoint.load(f"{module}.weight", compute_device())
        hessian, importance = statistics.hessian(module), statistics.importance(module)
        for name in names:
            qtype = qtypes.get(name)
            parts, predicted = [], 0.0
            for rows in _table_rows(*weight.shape):
                parts.append(qtype.pack(fit(qtype, weight[rows], importance)))
                error = qtype.dequantize(parts[-1]).sub_(weight[rows])
                predicted += statistics.predicted_kl(module, error, hessian, rows)
                table = module in (EMBEDDING, HEAD)
                self.progress.advance(rounding_seconds(name, error.numel(), table=table))
            packed = {part: torch.cat([some[part] for some in parts]) for part in parts[0]}
            cell = BankCell(predicted, bank.rounding, "nearest")
            done: dict[CellKey, PackedCell] = {}
            self.background.do(_fetch, done, [(module, name)], [packed], [cell], record_event())
            self.background.do(bank.add, ROUNDED, done)

    def _call_on_jobs(
        self,
        owners: Sequence[str],
        wanted: ByInput,
        function: Callable[
            [Sequence[CellKey], Sequence[RoundingJob], Factor], Iterable[PackedCell]
        ],
        folder: str,
    ) -> None:
        """Call a function on what reads some inputs, under one factorization; keep its results."""
        keys, jobs, factor = self._jobs(owners, wanted)
        by_kind = sorted(range(len(jobs)), key=lambda i: repr(kind_of_qtype(jobs[i].qtype)))
        done: dict[CellKey, PackedCell] = {}
        room = self.memory.cell_weights
        for part in _split_by_size(by_kind, lambda i: jobs[i].weight.numel(), room):
            own = [keys[i] for i in part]
            packed, cells = zip(*function(own, [jobs[i] for i in part], factor), strict=True)
            self.background.do(_fetch, done, own, packed, cells, record_event())
            cost = rounding_seconds if folder == ROUNDED else polishing_seconds
            self.progress.advance(sum(cost(name, self.bank.weights(m)) for m, name in own))
        self.background.do(self.bank.add, folder, done)

    def _jobs(
        self, owners: Sequence[str], wanted: ByInput
    ) -> tuple[list[CellKey], list[RoundingJob], Factor]:
        """List what to round of some inputs' readers, as (module, type) and as jobs; factorize."""
        bank, device = self.bank, compute_device()
        hessians = torch.stack([bank.statistics.hessian(owner) for owner in owners]).to(device)
        factor = factorize(hessians, owners, self.progress)
        keys, jobs = [], []
        for place, owner in enumerate(owners):
            for module, names in wanted[owner].items():
                weight = bank.checkpoint.load(f"{module}.weight", device)
                feedback = bank.rounding != "nearest"
                outputs = outputs_of(bank.statistics, module) if feedback else None
                keys += [(module, name) for name in names]
                jobs += [RoundingJob(weight, qtypes.get(name), place, outputs) for name in names]
        return keys, jobs, factor


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


def _free_memory() -> None:
    """Return free memory where matrices are rounded: other inputs need blocks of other sizes."""
    if compute_device().type == "cpu":
        trim()
    else:
        torch.cuda.empty_cache()


SizedItem = TypeVar("SizedItem")


def _split_by_size(
    items: Iterable[SizedItem], size: Callable[[SizedItem], int], room: int
) -> Iterator[list[SizedItem]]:
    """Items in order, as many at a time as fit a room; one that is larger goes alone."""
    own: list[SizedItem] = []
    taken = 0
    for item in items:
        if own and taken + size(item) > room:
            yield own
            own, taken = [], 0
        own.append(item)
        taken += size(item)
    if own:
        yield own
