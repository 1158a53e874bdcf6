"""Whole matrices through a computation over rows: cut, put together in chunks, joined again.

Rounding treats rows alike whichever matrix or type they belong to, and the inputs of several layers
too. Chunks are as large as threads need to be busy and small enough for memory; how a matrix is cut
changes none of its bytes.

Letters: R rows of a matrix, C columns, L inputs in a chunk, N rows of each.
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
"""Rows come in multiples of this. On fewer, products and sums take other ways, which differ in the
last bits; with it a matrix is rounded to the same bytes whatever else goes through with it."""
LEAST = 1 << 20
"""Weights worth a thread of their own: on fewer, threads spend their time waiting for each other to
let go of Python (docs/decisions/gptq.md)."""
CPU_CHUNK = 1 << 23
"""Weights that go through together in one thread of a CPU, at most."""
DEVICE_CHUNK = 1 << 27
"""The same elsewhere, where memory is the limit."""


@dataclass(frozen=True)
class RowBatch:
    """A matrix, or some of its rows, on its way onto a type."""

    qtype: QuantType
    weight: Tensor
    """float32 [R, C]."""
    fields: Unpacked
    """Of those rows."""

    def each(self, take: Callable[[Tensor], Tensor]) -> RowBatch:
        """The piece with other rows: ``take`` of its weight and of each of its fields."""
        fields = {name: take(field) for name, field in self.fields.items()}
        return RowBatch(self.qtype, take(self.weight), fields)

    def split(self, counts: Sequence[int]) -> list[RowBatch]:
        """So many rows each."""
        weights = self.weight.split(list(counts))
        fields = {name: field.split(list(counts)) for name, field in self.fields.items()}
        return [
            RowBatch(self.qtype, weight, {name: parts[i] for name, parts in fields.items()})
            for i, weight in enumerate(weights)
        ]


RowRun = Sequence[RowBatch]
"""Rows of matrices that read one input."""


@dataclass(frozen=True)
class RoundedRows:
    """What became of a matrix, or of some of its rows."""

    fields: Unpacked
    method: str
    """Of :data:`bitquilt.rounding.METHODS`; nearest where what was asked for is no better."""
    costs: Tensor | None
    """E H Eᵀ of each row [R], under the damped Hessian; None of what is not compared any more."""


Done = list[list[RoundedRows]]
"""What became of each piece of some runs."""

Work = Callable[[Sequence[RowRun], Sequence[int]], Done]
"""Given rows of L inputs, and which inputs those are."""


def map_batches(pieces: Sequence[RowBatch], inputs: Sequence[int], work: Work) -> list[RoundedRows]:
    """Do ``work`` on all rows of some matrices of equal width.

    Args:
        pieces: whole matrices.
        inputs: which input each of them reads.
        work: done chunk by chunk; on a CPU in threads.
    """
    if not pieces:
        return []
    weight = pieces[0].weight
    on_cpu = weight.device.type == "cpu"
    whole = [piece.each(tiled) for piece in pieces]
    room = _room(sum(piece.weight.numel() for piece in whole), on_cpu) // weight.shape[1]
    runs = _runs(whole, inputs, TILE * max(1, room // TILE))
    chunks = list(_chunks(runs, room))

    def do(chunk: list[_Run]) -> Done:
        return work([run.pieces for run in chunk], [run.input for run in chunk])

    done = in_threads(do, chunks) if on_cpu else [do(chunk) for chunk in chunks]
    parts: list[dict[int, RoundedRows]] = [{} for _ in pieces]
    for chunk, results in zip(chunks, done, strict=True):
        for run, of_run in zip(chunk, results, strict=True):
            for owner, start, result in zip(run.owners, run.starts, of_run, strict=True):
                parts[owner][start] = result
    return [_joined(own, len(p.weight)) for own, p in zip(parts, pieces, strict=True)]


def stacked(runs: Sequence[Tensor]) -> Tensor:
    """Rows of each input, [..., N of that input], as one [L, ..., N].

    The last row of an input is repeated where others have more.
    """
    most = max(run.shape[-1] for run in runs)
    return torch.stack([_filled(run.movedim(-1, 0), most).movedim(0, -1) for run in runs])


def unstacked(rows: Tensor, runs: Sequence[RowRun]) -> list[list[Tensor]]:
    """The inverse of :func:`stacked`: [L, ..., N] as the rows of each piece of each run."""
    counts = [[len(piece.weight) for piece in run] for run in runs]
    return [
        list(own[..., : sum(count)].split(count, -1))
        for own, count in zip(rows, counts, strict=True)
    ]


def tiled(rows: Tensor) -> Tensor:
    """Rows [R, …], the last one repeated up to a whole number of tiles."""
    return _filled(rows, TILE * math.ceil(len(rows) / TILE))


def _filled(rows: Tensor, count: int) -> Tensor:
    """Rows [R, …], the last one repeated up to that many."""
    if len(rows) == count:
        return rows
    return torch.cat([rows, rows[-1:].expand(count - len(rows), *rows.shape[1:])])


def _room(weights: int, on_cpu: bool) -> int:
    """Weights in a chunk."""
    if not on_cpu:
        return DEVICE_CHUNK
    return min(CPU_CHUNK, max(LEAST, math.ceil(weights / torch.get_num_threads())))


@dataclass
class _Run:
    """Rows of matrices that read one input, and whose they are."""

    input: int
    pieces: list[RowBatch]
    owners: list[int]
    starts: list[int]

    @property
    def rows(self) -> int:
        return sum(len(piece.weight) for piece in self.pieces)


def _runs(pieces: Sequence[RowBatch], inputs: Sequence[int], room: int) -> Iterator[_Run]:
    """The rows of every input, at most ``room`` at a time."""
    for own in dict.fromkeys(inputs):
        run = _Run(own, [], [], [])
        for owner, piece in enumerate(pieces):
            start = 0
            while inputs[owner] == own and start < len(piece.weight):
                rows = slice(start, start + room - run.rows)
                part = piece.each(itemgetter(rows))
                run.pieces.append(part)
                run.owners.append(owner)
                run.starts.append(start)
                start += len(part.weight)
                if run.rows == room:
                    yield run
                    run = _Run(own, [], [], [])
        if run.pieces:
            yield run


def _chunks(runs: Iterable[_Run], room: int) -> Iterator[list[_Run]]:
    """Runs of similar length together, at most ``room`` rows once they are equally long."""
    chunk: list[_Run] = []
    for run in sorted(runs, key=lambda run: run.rows):
        if chunk and (len(chunk) + 1) * run.rows > room:
            yield chunk
            chunk = []
        chunk.append(run)
    if chunk:
        yield chunk


def _joined(parts: dict[int, RoundedRows], rows: int) -> RoundedRows:
    """The rows of one matrix from those of its chunks by their starts, without repeated ones."""
    ordered = [parts[start] for start in sorted(parts)]
    fields = {
        name: torch.cat([part.fields[name] for part in ordered])[:rows]
        for name in ordered[0].fields
    }
    costs = [part.costs for part in ordered if part.costs is not None]
    return RoundedRows(fields, ordered[0].method, torch.cat(costs)[:rows] if costs else None)
