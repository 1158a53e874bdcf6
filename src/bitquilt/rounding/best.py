"""The best rounding of all matrices that read one input, each onto several grids.

Nearest rounding fits the scales; error feedback, coordinate descent and a refit of the scales
follow under the input's Hessian. What the Hessian says is no better than nearest rounding is not
used. Rows of different matrices and grids go through together: they share all but their levels.

Letters: R rows of a matrix, C columns, N rows of all jobs in a chunk, G = C / 8 groups of columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitquilt.grids.grid import Fields, Grid, ScalarGrid
from bitquilt.grids.iquants import Codebook
from bitquilt.parallel import in_threads
from bitquilt.rounding.descent import descend
from bitquilt.rounding.factor import Factor
from bitquilt.rounding.feedback import feed_back
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.refit import refit
from bitquilt.rounding.rounders import LevelRounder, PatternRounder, Rounder

TILE = 32
"""Rows come in multiples of this. On fewer, matrix products take other ways that differ in the last
bits; with it a matrix is rounded to the same bytes whatever else goes through with it."""
CPU_CHUNK = 1 << 23
"""Weights that go through together in one thread of a CPU. On fewer, threads spend their time
waiting for each other to let go of Python (docs/decisions/feedback.md)."""
DEVICE_CHUNK = 1 << 26
"""The same elsewhere, where memory is the limit."""


@dataclass(frozen=True)
class Job:
    """One matrix onto one grid."""

    weight: Tensor
    """float32 [R, C]."""
    grid: Grid


@dataclass(frozen=True)
class Rounded:
    """What became of a job."""

    fields: Fields
    method: str
    """Of :data:`bitquilt.rounding.METHODS`; nearest where what was asked for is no better."""
    costs: Tensor
    """E H Eᵀ of each row [R], under the damped Hessian."""


@dataclass(frozen=True)
class _Piece:
    """Some rows of a job."""

    grid: Grid
    weight: Tensor
    fields: Fields


def round_all(jobs: Sequence[Job], factor: Factor, method: str) -> list[Rounded]:
    """Round every job.

    Args:
        jobs: matrices that read the same input, on the factor's device.
        factor: of the input.
        method: one of :data:`bitquilt.rounding.METHODS`.
    """
    plain = factor.natural.diagonal().contiguous()
    importance = plain if method == "nearest" else factor.importance
    nearest = [_nearest(job, importance, factor) for job in jobs]
    better: dict[int, Rounded] = {}
    if method != "nearest":
        kinds = [_kind(job.grid) for job in jobs]
        for kind in dict.fromkeys(kinds):
            if kind is None:
                continue
            own = [i for i, of_job in enumerate(kinds) if of_job == kind]
            pieces = [_Piece(jobs[i].grid, jobs[i].weight, nearest[i].fields) for i in own]
            better |= zip(own, _together(pieces, factor, method), strict=True)
    return [_guarded(before, better.get(i, before)) for i, before in enumerate(nearest)]


def _guarded(nearest: Rounded, other: Rounded) -> Rounded:
    """The one of less error over the whole matrix."""
    return other if other.costs.sum() < nearest.costs.sum() else nearest


def _nearest(job: Job, importance: Tensor, factor: Factor) -> Rounded:
    fields = fit(job.grid, job.weight, importance)
    errors = (job.weight - job.grid.decode(fields)).T
    return Rounded(fields, "nearest", factor.cost(factor.ordered(errors)))


def _kind(grid: Grid) -> object:
    """Grids that can go through together have the same; None for those that need no feedback."""
    if isinstance(grid, Codebook):
        return grid.name
    return (grid.table, "levels") if isinstance(grid, ScalarGrid) else None


def _together(pieces: Sequence[_Piece], factor: Factor, method: str) -> list[Rounded]:
    """Feedback and more for whole matrices, a chunk of rows at a time."""
    rows, columns = [len(piece.weight) for piece in pieces], pieces[0].weight.shape[1]
    pieces = [_tiled(piece) for piece in pieces]
    on_cpu = pieces[0].weight.device.type == "cpu"
    most = (CPU_CHUNK if on_cpu else DEVICE_CHUNK) // columns
    chunks = list(_chunks(pieces, TILE * max(1, most // TILE)))

    def work(chunk: list[tuple[int, _Piece]]) -> list[Rounded]:
        return _chunk([piece for _, piece in chunk], factor, method)

    done = in_threads(work, chunks) if on_cpu else [work(chunk) for chunk in chunks]
    parts: list[list[Rounded]] = [[] for _ in pieces]
    for chunk, results in zip(chunks, done, strict=True):
        for (owner, _), result in zip(chunk, results, strict=True):
            parts[owner].append(result)
    return [_joined(own, count) for own, count in zip(parts, rows, strict=True)]


def _tiled(piece: _Piece) -> _Piece:
    """The piece with its last row repeated up to a whole number of tiles."""
    rows = len(piece.weight)
    whole = torch.arange(TILE * math.ceil(rows / TILE), device=piece.weight.device)
    index = whole.clamp_max(rows - 1)
    fields = {name: field[index] for name, field in piece.fields.items()}
    return _Piece(piece.grid, piece.weight[index], fields)


def _chunks(pieces: Sequence[_Piece], most: int) -> Iterator[list[tuple[int, _Piece]]]:
    """Rows of all pieces, at most ``most`` at a time, each with the number of its piece."""
    chunk: list[tuple[int, _Piece]] = []
    room = most
    for owner, piece in enumerate(pieces):
        start = 0
        while start < len(piece.weight):
            rows = slice(start, start + room)
            fields = {name: field[rows] for name, field in piece.fields.items()}
            part = _Piece(piece.grid, piece.weight[rows], fields)
            chunk.append((owner, part))
            start += len(part.weight)
            room -= len(part.weight)
            if room == 0:
                yield chunk
                chunk, room = [], most
    if chunk:
        yield chunk


def _joined(parts: Sequence[Rounded], rows: int) -> Rounded:
    """The rows of one matrix from those of its chunks, without the repeated ones."""
    fields = {
        name: torch.cat([part.fields[name] for part in parts])[:rows] for name in parts[0].fields
    }
    return Rounded(fields, parts[0].method, torch.cat([part.costs for part in parts])[:rows])


def _chunk(pieces: Sequence[_Piece], factor: Factor, method: str) -> list[Rounded]:
    """Feedback and more for the rows of a chunk."""
    weight = _transposed([piece.weight for piece in pieces], factor)
    rounder = _rounder(pieces)
    codes, levels, costs = feed_back(weight, rounder, factor)
    if method == "best":
        costs -= descend(weight, codes, levels, rounder, factor)
        pieces = [_refitted(piece, factor) for piece in _recoded(pieces, rounder, codes, factor)]
        rounder = _rounder(pieces)
        levels = _transposed([piece.grid.decode(piece.fields) for piece in pieces], factor)
        costs = factor.cost(weight - levels)
        costs -= descend(weight, codes, levels, rounder, factor)
    pieces = _recoded(pieces, rounder, codes, factor)
    by_piece = costs.split([len(piece.weight) for piece in pieces])
    return [Rounded(piece.fields, method, own) for piece, own in zip(pieces, by_piece, strict=True)]


def _transposed(matrices: Sequence[Tensor], factor: Factor) -> Tensor:
    """[R, C] of each piece -> [C, N] in the factor's order."""
    return factor.ordered(torch.cat(list(matrices)).T)


def _recoded(
    pieces: Sequence[_Piece], rounder: Rounder, codes: Tensor, factor: Factor
) -> list[_Piece]:
    """The pieces with codes [G, K, N], which are in the factor's order."""
    natural = codes[factor.groups.argsort()]
    by_piece = natural.split([len(piece.weight) for piece in pieces], 2)
    return [
        replace(piece, fields=piece.fields | rounder.fields(piece.grid, own))
        for piece, own in zip(pieces, by_piece, strict=True)
    ]


def _refitted(piece: _Piece, factor: Factor) -> _Piece:
    return replace(piece, fields=refit(piece.grid, piece.fields, piece.weight, factor.natural))


def _rounder(pieces: Sequence[_Piece]) -> Rounder:
    grids = [piece.grid for piece in pieces]
    fields = [piece.fields for piece in pieces]
    columns = pieces[0].weight.shape[1]
    if isinstance(grids[0], Codebook):
        return PatternRounder(grids[0], fields, columns)
    return LevelRounder([g for g in grids if isinstance(g, ScalarGrid)], fields, columns)
