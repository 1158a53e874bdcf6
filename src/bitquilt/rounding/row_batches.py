"""Rows of many matrices in one batch: cut to size, computed together, put back together.

Rounding treats rows alike whichever matrix or type they belong to, so the rows of several matrices,
and of several layers, go through it as one batch. A batch is large enough to keep threads busy and
small enough for memory. A matrix is rounded to the same bytes however it is cut.

Letters: R rows of a matrix, C columns, L inputs in a batch, N rows of each input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from bitquilt.qtypes.qtype import QuantType, Unpacked
from bitquilt.runtime.threads import in_threads

TILE = 32
"""Rows are padded to a multiple of this. With fewer, products and sums take other ways through the
libraries, which differ in the last bits; then a matrix alone would not be rounded as it is
rounded among others."""


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """How many weights go through rounding together."""

    least_per_thread: int = 1 << 20
    """Weights that are worth a thread of their own on a CPU: with fewer, threads wait for each
    other to let go of Python (docs/decisions/gptq.md)."""
    cpu: int = 1 << 23
    """The most weights that one thread of a CPU takes."""
    device: int = 1 << 27
    """The weights that any other device takes, where memory is the limit."""

    def weights(self, total: int, on_cpu: bool) -> int:
        """Return the most weights of one batch, given how many there are in all."""
        if not on_cpu:
            return self.device
        per_thread = math.ceil(total / torch.get_num_threads())
        return min(self.cpu, max(self.least_per_thread, per_thread))


DEFAULT_SIZES = BatchSizes()


@dataclass(frozen=True)
class Rows:
    """A matrix, or some of its rows, and what it is rounded to so far."""

    qtype: QuantType
    weight: Tensor
    """float32 [R, C]."""
    fields: Unpacked
    """Codes and scales of those rows."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Rows:
        """Apply a change along the first axis, such as a slice, to the weight and every field."""
        fields = {name: change(field) for name, field in self.fields.items()}
        return Rows(self.qtype, change(self.weight), fields)

    def split(self, counts: Sequence[int]) -> list[Rows]:
        """Cut into parts of so many rows each."""
        weights = self.weight.split(list(counts))
        fields = {name: field.split(list(counts)) for name, field in self.fields.items()}
        return [
            Rows(self.qtype, weight, {name: parts[i] for name, parts in fields.items()})
            for i, weight in enumerate(weights)
        ]


RowRun = Sequence[Rows]
"""Rows of several matrices that read one input, one after the other."""


@dataclass(frozen=True)
class RowBatch:
    """One run of rows for each of L inputs: what is computed together."""

    runs: Sequence[RowRun]
    inputs: Sequence[int]
    """Which input each run reads, L numbers."""


@dataclass(frozen=True)
class RoundedRows:
    """A matrix, or some of its rows, after rounding."""

    fields: Unpacked
    method: str
    """One of :data:`bitquilt.rounding.METHODS`: ``nearest`` where nothing else was better."""
    costs: Tensor | None
    """E H Eᵀ of each row [R] under the damped Hessian; None where nobody compares any more."""


OfType = Callable[[QuantType, Unpacked], Tensor]
"""Makes something of the fields of rows of one type; each row is on its own."""
BatchFunction = Callable[[RowBatch], list[list[RoundedRows]]]
"""Rounds a batch; the result is by run, and within a run as its rows are."""


def map_batches(
    matrices: Sequence[Rows],
    inputs: Sequence[int],
    function: BatchFunction,
    sizes: BatchSizes = DEFAULT_SIZES,
) -> list[RoundedRows]:
    """Call a function on all rows of some matrices, batch by batch; on a CPU in threads.

    Args:
        matrices: whole matrices of equal width.
        inputs: which input each matrix reads.
        function: rounds one batch.
        sizes: how large a batch is.

    Returns:
        one result for each matrix.
    """
    if not matrices:
        return []
    weight = matrices[0].weight
    on_cpu = weight.device.type == "cpu"
    padded = [matrix.map(pad_rows) for matrix in matrices]
    total = sum(matrix.weight.numel() for matrix in padded)
    most_rows = sizes.weights(total, on_cpu) // weight.shape[1]
    runs = _cut_into_runs(padded, inputs, TILE * max(1, most_rows // TILE))
    batches = list(_group_runs(runs, most_rows))

    def on_batch(batch: list[_OwnedRun]) -> list[list[RoundedRows]]:
        return function(RowBatch([run.rows for run in batch], [run.input for run in batch]))

    done = in_threads(on_batch, batches) if on_cpu else [on_batch(batch) for batch in batches]
    parts: list[dict[int, RoundedRows]] = [{} for _ in matrices]
    for batch, results in zip(batches, done, strict=True):
        for run, of_run in zip(batch, results, strict=True):
            for owner, start, result in zip(run.owners, run.starts, of_run, strict=True):
                parts[owner][start] = result
    return [_joined(own, len(m.weight)) for own, m in zip(parts, matrices, strict=True)]


def batch_rows(runs: Sequence[Tensor]) -> Tensor:
    """Put the rows of L inputs, each [..., N of that input], into one tensor [L, ..., N].

    Shorter runs are padded with their last row.
    """
    most = max(run.shape[-1] for run in runs)
    return torch.stack([_padded(run.movedim(-1, 0), most).movedim(0, -1) for run in runs])


def unbatch_rows(batched: Tensor, runs: Sequence[RowRun]) -> list[list[Tensor]]:
    """Cut [L, ..., N] into what belongs to each matrix of each run: undoes :func:`batch_rows`."""
    counts = [[len(rows.weight) for rows in run] for run in runs]
    return [
        list(own[..., : sum(count)].split(count, -1))
        for own, count in zip(batched, counts, strict=True)
    ]


def by_type(runs: Sequence[RowRun], function: OfType, axis: int = 0) -> list[list[Tensor]]:
    """Call a function once for all rows of a type, and cut what it gives by matrices.

    Args:
        runs: rows of any types.
        function: gives tensors with rows along an axis.
        axis: that one.

    Returns:
        By run, and within a run as its rows are.
    """
    flat = [rows for run in runs for rows in run]
    made: dict[int, Tensor] = {}
    for qtype in dict.fromkeys(rows.qtype for rows in flat):
        own = [i for i, rows in enumerate(flat) if rows.qtype is qtype]
        counts = [len(flat[i].weight) for i in own]
        whole = function(qtype, joined_fields([flat[i].fields for i in own]))
        made |= zip(own, whole.split(counts, axis), strict=True)
    ordered = iter([made[i] for i in range(len(flat))])
    return [[next(ordered) for _ in run] for run in runs]


def decode_rows(qtype: QuantType, fields: Unpacked) -> Tensor:
    """Decode rows of a type, float32 [R, C]."""
    return qtype.decode(fields)


def joined_fields(parts: Sequence[Unpacked]) -> Unpacked:
    """Put rows of one type one after the other; one part alone is not copied."""
    first = parts[0]
    return {
        name: torch.cat([part[name] for part in parts]) if len(parts) > 1 else first[name]
        for name in first
    }


def pad_rows(rows: Tensor) -> Tensor:
    """Repeat the last of the rows [R, …] up to a whole number of tiles."""
    return _padded(rows, TILE * math.ceil(len(rows) / TILE))


def _padded(rows: Tensor, count: int) -> Tensor:
    """Repeat the last of the rows [R, …] up to a count."""
    if len(rows) == count:
        return rows
    return torch.cat([rows, rows[-1:].expand(count - len(rows), *rows.shape[1:])])


@dataclass
class _OwnedRun:
    """Rows of matrices that read one input, and where they come from."""

    input: int
    rows: list[Rows]
    owners: list[int]
    """Which matrix each of the rows is part of."""
    starts: list[int]
    """At which row of that matrix each begins."""

    @property
    def count(self) -> int:
        return sum(len(rows.weight) for rows in self.rows)


def _cut_into_runs(
    matrices: Sequence[Rows], inputs: Sequence[int], most: int
) -> Iterator[_OwnedRun]:
    """Cut the rows of every input into runs of at most ``most`` rows."""
    for own in dict.fromkeys(inputs):
        run = _OwnedRun(own, [], [], [])
        for owner, matrix in enumerate(matrices):
            start = 0
            while inputs[owner] == own and start < len(matrix.weight):
                part = matrix.map(itemgetter(slice(start, start + most - run.count)))
                run.rows.append(part)
                run.owners.append(owner)
                run.starts.append(start)
                start += len(part.weight)
                if run.count == most:
                    yield run
                    run = _OwnedRun(own, [], [], [])
        if run.rows:
            yield run


def _group_runs(runs: Iterable[_OwnedRun], most: int) -> Iterator[list[_OwnedRun]]:
    """Group runs of similar length, at most ``most`` rows once they are padded to equal length."""
    group: list[_OwnedRun] = []
    for run in sorted(runs, key=lambda run: run.count):
        if group and (len(group) + 1) * run.count > most:
            yield group
            group = []
        group.append(run)
    if group:
        yield group


def _joined(parts: dict[int, RoundedRows], count: int) -> RoundedRows:
    """Put the parts of one matrix, by their first row, together again, without the padding."""
    ordered = [parts[start] for start in sorted(parts)]
    whole = joined_fields([part.fields for part in ordered])
    fields = {name: field[:count] for name, field in whole.items()}
    costs = [part.costs for part in ordered if part.costs is not None]
    return RoundedRows(fields, ordered[0].method, torch.cat(costs)[:count] if costs else None)
