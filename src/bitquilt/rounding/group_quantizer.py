"""Nearest codes of eight columns of many rows, onto levels whose scales are fixed.

Error feedback and coordinate descent ask the same question of every type: which codes come closest
to these targets, in the metric of the Hessian? Codes travel as int16 [K, N] per group of columns,
whatever a type makes of them.

Letters: L inputs, N rows of each (of one or several matrices and types), C columns, G = C / 8
groups of columns, K numbers that code one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from bitquilt.qtypes.iquants import Codebook, codebook
from bitquilt.qtypes.qtype import QuantType, ScalarQuantType, Unpacked
from bitquilt.rounding.codebooks import nearest_patterns
from bitquilt.rounding.hessian import COLUMN_GROUP, take_groups
from bitquilt.rounding.kernels import KernelQuantizer, level_quantizer, pattern_quantizer
from bitquilt.rounding.row_batches import RowRun, batch_rows, by_type
from bitquilt.rounding.tables import level_table


class GroupQuantizer(ABC):
    """Rounds groups of eight columns of the rows of L inputs."""

    width: int
    """K."""

    @abstractmethod
    def scales(self, groups: slice) -> Sequence[Tensor]:
        """Return what the levels of some groups, as ordered, are made of, each [groups, L, N]."""

    @abstractmethod
    def propose(
        self, scales: Sequence[Tensor], target: Tensor, triangles: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Propose codes int16 [L, K, N] and levels float32 [L, 8, N] near targets [L, 8, N].

        Near means ‖Tᵀ (target − level)‖² small, T [8, 8] an upper triangular one of ``triangles``.

        Args:
            scales: of those eight columns, float32 [L, N] each.
            target: float32 [L, 8, N].
            triangles: float32 [L, 8, 8].
        """

    @abstractmethod
    def in_kernel(self, groups: slice) -> KernelQuantizer:
        """Return what kernels propose with for some groups, as ordered, on a GPU."""

    @staticmethod
    @abstractmethod
    def fields(qtype: QuantType, codes: Tensor) -> Unpacked:
        """Turn codes [G, K, R], groups in their own order, into code fields of rows of a type."""

    @staticmethod
    @abstractmethod
    def codes(fields: Unpacked) -> Tensor:
        """Undo :meth:`fields`: return codes, int16 [G, K, R]."""


def group_quantizer_of(runs: Sequence[RowRun], groups: Tensor) -> GroupQuantizer:
    """Return the quantizer for rows of L inputs, whose types are all of one kind.

    Args:
        runs: the rows of each input; their codes are ignored.
        groups: the order of rounding, int64 [L, G].
    """
    kind = PatternQuantizer if isinstance(runs[0][0].qtype, Codebook) else LevelQuantizer
    return kind(runs, groups)


class LevelQuantizer(GroupQuantizer):
    """Quantizes types with a code for each weight: each column makes up for those before it.

    All of them have the same table of values, or none.
    """

    width = COLUMN_GROUP

    def __init__(self, runs: Sequence[RowRun], groups: Tensor) -> None:
        """See :func:`group_quantizer_of`."""
        self._table = level_table(_scalar(runs[0][0].qtype))
        lines, limits = (
            by_type(runs, partial(_lines, groups.shape[1]), 2),
            by_type(runs, _limits, 2),
        )
        self._steps, self._offsets = _in_order(lines, groups)
        self._inverse = torch.where(self._steps == 0, 0.0, 1 / self._steps)
        # [2, 1, N] of each run -> [L, 1, N] twice
        whole = batch_rows([torch.cat(own, 2) for own in limits])
        self._low, self._high = whole[:, 0].contiguous(), whole[:, 1].contiguous()

    def scales(self, groups: slice) -> Sequence[Tensor]:
        """See :meth:`GroupQuantizer.scales`: steps, their inverses and offsets."""
        return self._steps[groups], self._inverse[groups], self._offsets[groups]

    def propose(
        self, scales: Sequence[Tensor], target: Tensor, triangles: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`GroupQuantizer.propose`."""
        step, inverse, offset = (each.unsqueeze(1) for each in scales)
        # all eight columns of a row have one step: in units of it, levels are whole numbers
        wanted = (target - offset).mul_(inverse)
        values = wanted.clone()
        # how much of its miss each column hands on to those after it, [L, 8, 8, 1]
        shares = (triangles / triangles.diagonal(dim1=1, dim2=2).unsqueeze(1)).unsqueeze(3)
        for j in range(COLUMN_GROUP):
            own, later = slice(j, j + 1), slice(j + 1, COLUMN_GROUP)
            self._to_nearest(values[:, own])
            if j + 1 < COLUMN_GROUP:
                values[:, later].addcmul_(shares[:, j, later], wanted[:, own] - values[:, own])
        codes = values if self._table is None else self._table.codes(values.clone())
        return codes.to(torch.int16), torch.addcmul(offset, values, step)

    def in_kernel(self, groups: slice) -> KernelQuantizer:
        """See :meth:`GroupQuantizer.in_kernel`."""
        return level_quantizer(self.scales(groups), (self._low, self._high), self._table)

    @staticmethod
    def fields(qtype: QuantType, codes: Tensor) -> Unpacked:
        """See :meth:`GroupQuantizer.fields`."""
        assert isinstance(qtype, ScalarQuantType)
        dtype = torch.int8 if qtype.low < 0 else torch.uint8
        # [G, 8, R] -> [C, R] -> [R, C]
        return {"codes": codes.flatten(0, 1).T.to(dtype).contiguous()}

    @staticmethod
    def codes(fields: Unpacked) -> Tensor:
        """See :meth:`GroupQuantizer.codes`."""
        # [R, C] -> [C, R] -> [G, 8, R]
        return torch.unflatten(fields["codes"].T.to(torch.int16), 0, (-1, COLUMN_GROUP))

    def _to_nearest(self, numbers: Tensor) -> None:
        """Move numbers [L, 1, N], in units of steps, to what the nearest codes stand for."""
        if self._table is None:
            numbers.round_().clamp_(self._low, self._high)
        else:
            numbers.copy_(self._table.levels(numbers))


class PatternQuantizer(GroupQuantizer):
    """Quantizes an i-quant with a codebook: the eight columns of a group are one vector."""

    def __init__(self, runs: Sequence[RowRun], groups: Tensor) -> None:
        """See :func:`group_quantizer_of`; all rows are of one type."""
        self._qtype = _codebook(runs[0][0].qtype)
        self._steps = _in_order(by_type(runs, partial(_patterns, groups.shape[1]), 2), groups)
        self.width = COLUMN_GROUP // codebook(self._qtype.name).shape[1] + self._qtype.signed

    def scales(self, groups: slice) -> Sequence[Tensor]:
        """See :meth:`GroupQuantizer.scales`: steps, and parts of the codebook if it has some."""
        return [each[groups] for each in self._steps]

    def propose(
        self, scales: Sequence[Tensor], target: Tensor, triangles: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`GroupQuantizer.propose`."""
        steps, *parts = scales
        codes, signs, levels = nearest_patterns(self._qtype, target, steps, triangles, *parts)
        if self._qtype.signed:
            codes = torch.cat([codes, signs.to(codes.dtype).unsqueeze(1)], 1)
        return codes, levels

    def in_kernel(self, groups: slice) -> KernelQuantizer:
        """See :meth:`GroupQuantizer.in_kernel`."""
        return pattern_quantizer(self._qtype, self.scales(groups))

    @staticmethod
    def fields(qtype: QuantType, codes: Tensor) -> Unpacked:
        """See :meth:`GroupQuantizer.fields`."""
        assert isinstance(qtype, Codebook)
        signs = {}
        if qtype.signed:
            codes, masks = codes[:, :-1], codes[:, -1]
            signs = {"signs": masks.T.to(torch.uint8).contiguous()}
        # [G, H, R] -> [G H, R] -> [R, G H]
        return {"codes": codes.flatten(0, 1).T.contiguous(), **signs}

    @staticmethod
    def codes(fields: Unpacked) -> Tensor:
        """See :meth:`GroupQuantizer.codes`."""
        patterns = fields["codes"].T.to(torch.int16)
        if "signs" not in fields:
            return patterns.unsqueeze(1)
        signs = fields["signs"].T.to(torch.int16).unsqueeze(1)
        # [R, G H] -> [G H, R] -> [G, H, R]
        return torch.cat([torch.unflatten(patterns, 0, (len(signs), -1)), signs], 1)


def _scalar(qtype: QuantType) -> ScalarQuantType:
    assert isinstance(qtype, ScalarQuantType)
    return qtype


def _codebook(qtype: QuantType) -> Codebook:
    assert isinstance(qtype, Codebook)
    return qtype


def _lines(count: int, qtype: QuantType, fields: Unpacked) -> Tensor:
    """Return steps and offsets of a type with levels for each of G groups, [2, G, R]."""
    levels = _scalar(qtype).levels(fields)
    steps, offsets = levels.steps, levels.offsets
    both = [steps, torch.zeros_like(steps) if offsets is None else offsets]
    return torch.stack([_for_groups(count, each) for each in both])


def _limits(qtype: QuantType, fields: Unpacked) -> Tensor:
    """Return the lowest and the highest code of a type, for each row: float32 [2, 1, R]."""
    own = _scalar(qtype)
    rows = (1, len(next(iter(fields.values()))))
    device = next(iter(fields.values())).device
    return torch.stack(
        [torch.full(rows, float(each), device=device) for each in (own.low, own.high)]
    )


def _patterns(count: int, qtype: QuantType, fields: Unpacked) -> Tensor:
    """Return a codebook's steps, and parts if it has some, for each of G groups, [1 or 2, G, R]."""
    own = _codebook(qtype)
    each = [own.steps(fields), *([own.part_taken(fields)] if own.parts > 1 else [])]
    return torch.stack([_for_groups(count, one) for one in each])


def _for_groups(count: int, steps: Tensor) -> Tensor:
    """Repeat steps [R, n], each of C / n columns, for every group of columns: [G, R]."""
    return steps.T.repeat_interleave(count // steps.shape[1], 0)


def _in_order(numbers: Sequence[Sequence[Tensor]], groups: Tensor) -> list[Tensor]:
    """Put numbers of groups into the order of rounding.

    Args:
        numbers: of every matrix in L runs, float32 [K, G, R].
        groups: the order of rounding, int64 [L, G].

    Returns:
        K tensors, float32 [G, L, N].
    """
    whole = batch_rows([torch.cat(list(own), 2) for own in numbers])  # [L, K, G, N]
    return [
        take_groups(whole[:, k], groups).transpose(0, 1).contiguous() for k in range(whole.shape[1])
    ]
