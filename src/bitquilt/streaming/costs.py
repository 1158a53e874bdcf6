"""What rounding a matrix costs, from a sample of its rows: weighted error over weighted power.

Letters: E experts of a stack, R rows of each, C columns, N sampled rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitquilt.gguf.ggml_type import GgmlType
from bitquilt.streaming import ggml
from bitquilt.streaming.importance import MatrixImportance
from bitquilt.streaming.source import GgufSource, SourceMatrix

LEAST_ROWS = 64
"""Rows that are sampled of a matrix at least; a stack has one of each expert, too."""
LEAST_WEIGHTS = 1 << 16
"""Weights that these have at least."""


@dataclass(frozen=True)
class MatrixErrors:
    """Errors of one matrix on each type, where importance weighs them."""

    power: float
    """Mean square of one output, Σ h w² for a row, from the sample."""
    errors: Mapping[GgmlType, float]
    """Mean square error of one output, Σ h Δw² for a row."""


def sampled_rows(matrix: SourceMatrix) -> NDArray[np.int64]:
    """Return numbers of rows, spread evenly; those of a stack are counted through."""
    rows = matrix.experts * matrix.rows
    wanted = max(LEAST_ROWS, -(-LEAST_WEIGHTS // matrix.columns), matrix.experts)
    if wanted >= rows:
        return np.arange(rows)
    # the middle of each stretch: the first row of every expert would be a bad sample
    return ((np.arange(wanted) + 0.5) * rows / wanted).astype(np.int64)


def matrix_errors(
    source: GgufSource,
    matrix: SourceMatrix,
    importance: MatrixImportance | None,
    kinds: Sequence[GgmlType],
) -> MatrixErrors:
    """Round a sample of a matrix's rows to each type, as the whole would be rounded.

    An expert counts for the share of tokens that reached it. On its own type a matrix has no error.

    Args:
        source: the model.
        matrix: of this model.
        importance: of its inputs; all alike where there is none.
        kinds: types whose blocks divide the rows.
    """
    chosen = sampled_rows(matrix)
    whole = len(chosen) == matrix.experts * matrix.rows
    weight = (
        source.rows(matrix, 0, len(chosen))
        if whole
        else np.concatenate([source.rows(matrix, int(row), 1) for row in chosen])
    )
    power, errors, total = 0.0, dict.fromkeys(kinds, 0.0), 0.0
    for expert, own in _by_expert(matrix, chosen):
        rows = np.ascontiguousarray(weight[own])
        squares = None if importance is None else importance.squares[expert]
        share = 1.0 if importance is None else float(importance.shares[expert])
        measure = np.ones(matrix.columns) if squares is None else squares.astype(np.float64)
        power += share * float(np.square(rows, dtype=np.float64).sum(0) @ measure)
        total += share * len(rows)
        for kind in kinds:
            if kind == source.tensors[matrix.name].type:
                continue
            stored = ggml.quantize_rows(kind, rows, squares)
            gap = ggml.dequantize_rows(kind, stored, matrix.columns) - rows
            errors[kind] += share * float(np.square(gap, dtype=np.float64).sum(0) @ measure)
    total = total or 1.0
    return MatrixErrors(power / total, {kind: error / total for kind, error in errors.items()})


def _by_expert(
    matrix: SourceMatrix, chosen: NDArray[np.int64]
) -> list[tuple[int, NDArray[np.intp]]]:
    """Return, for each expert that has rows in the sample, which of them these are."""
    owners = chosen // matrix.rows
    return [(int(expert), np.flatnonzero(owners == expert)) for expert in np.unique(owners)]
