"""Tools for the fits of K-quants: super-blocks laid out side by side, and choices among them.

Letters: R rows, C columns; N super-blocks, J sub-blocks in each, k weights in a sub-block.

Weights are held as [k, J, N]: sums over a sub-block then add whole slices, which a CPU does several
times faster than sums over 16 neighbours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitquilt.qtypes.ggml import SUPER_BLOCK
from bitquilt.qtypes.kquants import Signed, WithMins
from bitquilt.qtypes.qtype import Unpacked
from bitquilt.qtypes.rows import by_rows

Fit = Callable[[Tensor, Tensor], Unpacked]
"""A function from weights and importance [k, J, N] to float32 fields: ``codes`` [k, J, N], scales
(and mins) [J, N], the scales of super-blocks [N]."""


def fit_super_blocks(
    qtype: Signed | WithMins, weight: Tensor, importance: Tensor, fit: Fit
) -> Unpacked:
    """Fit a matrix [R, C] with importance [R, C] a few rows at a time."""
    whole = torch.int8 if isinstance(qtype, Signed) else torch.uint8

    def by_block(rows: Tensor) -> Tensor:
        # [r, C] -> [r, C / 256, J, k] -> [k, J, r, C / 256] -> [k, J, N]
        parts = torch.unflatten(rows, 1, (-1, SUPER_BLOCK // qtype.sub_block, qtype.sub_block))
        return parts.permute(3, 2, 0, 1).flatten(2).contiguous()

    def fit_rows(rows: Tensor, shares: Tensor) -> Unpacked:
        fields = fit(by_block(rows), by_block(shares))
        for name, field in fields.items():
            # [k, J, N] or [J, N] or [N] -> [N, J, k] or [N, J] or [N] -> [r, …]
            field = field if field.dim() == 1 else field.to(whole)
            fields[name] = field.permute(*reversed(range(field.dim()))).reshape(len(rows), -1)
        return fields

    chunks = by_rows(fit_rows, weight.shape[1], weight, importance)
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def half(numbers: Tensor) -> Tensor:
    """Round to half precision, as a file stores super-block scales."""
    return numbers.half().float()


def finite_reciprocal(numbers: Tensor) -> Tensor:
    """Return 1 / number, and 0 where that is infinite."""
    return torch.reciprocal(numbers).nan_to_num_(0.0, 0.0, 0.0)


def furthest(numbers: Tensor) -> Tensor:
    """Return the number furthest from zero, with its sign, over the first axis."""
    low, high = numbers.amin(0), numbers.amax(0)
    return torch.where(-low > high, low, high)


def pick_best(gains: Tensor, *tables: Tensor) -> list[Tensor]:
    """Return the largest gain over the first axis, and what tables hold there; NaN never wins.

    (torch's argmax over a first axis is fifty times slower.)
    """
    gains = gains.nan_to_num(nan=-torch.inf)
    best = gains.amax(0)
    places = torch.arange(len(gains), 0, -1, device=gains.device, dtype=gains.dtype)
    first = gains.eq_(best).mul_(places.view(-1, *[1] * best.dim())).amax(0, keepdim=True)
    index = (len(gains) - first).long()
    return [best, *(table.gather(0, index)[0] for table in tables)]
