"""An importance matrix meets a model: what counts for how much, matrix by matrix.

Letters: E experts of a stack (1 for a plain matrix), C columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitquilt.errors import UserError
from bitquilt.gguf.imatrix import ImportanceEntry, ImportanceMatrix
from bitquilt.streaming.ggml import Float32Array
from bitquilt.streaming.source import GgufSource, SourceMatrix

LEAST_SHARE = 1e-6
"""The least importance, as a part of the mean: columns that the text never reached need it too."""
EMBEDDING, OUTPUT, OUTPUT_NORM = "token_embd.weight", "output.weight", "output_norm.weight"


@dataclass(frozen=True)
class MatrixImportance:
    """What the inputs of one matrix count for."""

    squares: Float32Array
    """Mean square of each input, [E, C], positive."""
    shares: Float32Array
    """The share of the tokens that each expert had, [E]; they add up to 1."""
    unreached: int = 0
    """Experts that no token reached: they have the mean of the others."""


def importance_of(
    source: GgufSource, matrix: ImportanceMatrix, where: str
) -> Mapping[str, MatrixImportance]:
    """Find the importance of every matrix that has an entry, by the tensor's name.

    The output matrix, of which llama-imatrix has no entry unless it is asked for, gets the squares
    of the last norm's weights: after this norm, inputs have these on average.

    Args:
        source: the model.
        matrix: its importance matrix.
        where: the path of the importance matrix, for errors.

    Raises:
        UserError: an entry has another size than its tensor, or none belongs to the model.
    """
    found = {
        name: _of_matrix(own, matrix.entries[name], where)
        for name, own in source.matrices.items()
        if name in matrix.entries
    }
    if not found:
        example = next(iter(matrix.entries))
        raise UserError(
            f"{where} has no entry for any matrix of {source.name} (its first is {example}); give "
            "the importance matrix of this model"
        )
    head = EMBEDDING if source.tied else OUTPUT
    if head not in found and head in source.matrices and OUTPUT_NORM in source.tensors:
        norm = source.values(OUTPUT_NORM)
        if len(norm) == source.matrices[head].columns:
            found[head] = MatrixImportance(_positive(norm[None] ** 2), np.ones(1, np.float32))
    return found


def _of_matrix(own: SourceMatrix, entry: ImportanceEntry, where: str) -> MatrixImportance:
    sums, counts = entry.sums, entry.counts
    if sums.size == own.experts * own.columns and len(counts) == 1:
        # old files, and matrices that are multiplied in parts, have one count for all
        sums = sums.reshape(own.experts, own.columns)
        counts = np.full(own.experts, counts[0], np.float32)
    if sums.shape != (own.experts, own.columns):
        raise UserError(
            f"{where} has {sums.size:,} numbers for {own.name}, but this matrix of the model has "
            f"{own.experts * own.columns:,} inputs; give the importance matrix of this model"
        )
    reached = counts > 0
    if not reached.any():
        return MatrixImportance(
            np.ones_like(sums), np.full(own.experts, 1 / own.experts, np.float32), own.experts
        )
    squares = sums / np.maximum(counts, 1e-12)[:, None]
    squares[~reached] = sums[reached].sum(0) / counts[reached].sum()
    shares = (counts / counts.sum()).astype(np.float32)
    return MatrixImportance(_positive(squares), shares, int((~reached).sum()))


def _positive(squares: NDArray[np.floating]) -> Float32Array:
    mean = squares.mean(1, keepdims=True, dtype=np.float64)
    least = np.where(mean > 0, LEAST_SHARE * mean, 1.0)
    return np.ascontiguousarray(np.maximum(squares, least), np.float32)
