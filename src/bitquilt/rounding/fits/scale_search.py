"""Search for the scale of each group: levels scale · l, where l is from a fixed set.

Letters: R rows, N groups along a row, k weights in a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bitquilt.rounding.fits.groups import TINY, dot, inverse

NearestLevels = Callable[[Tensor], Tensor]
"""A function from numbers to their nearest fixed levels; it may work in place."""


def search_scales(
    groups: Tensor,
    importance: Tensor,
    levels: NearestLevels,
    factor: Tensor,
    multiples: Sequence[float],
    nearest: Callable[[Tensor], Tensor],
) -> Tensor:
    """Find the best scale of those that fit what some starting scales round to.

    For given levels l the best scale is Σ h w l / Σ h l² (h importance); a scale s takes
    s (2 Σ h w l - s Σ h l²) off the error, so the largest of these wins.

    Args:
        groups: weights, float32 [R, N, k].
        importance: [R, N, k].
        levels: the set.
        factor: inverse scales, [R, N, 1].
        multiples: of those, the starts.
        nearest: the nearest scales that can be stored.

    Returns:
        Scales [R, N, 1] as they are stored.
    """
    weighted = groups * importance
    products = groups.new_empty(len(multiples), *groups.shape[:-1])
    squares = torch.empty_like(products)
    for multiple, product, square in zip(multiples, products, squares, strict=True):
        level = levels(groups * (factor * multiple))
        torch.linalg.vecdot(weighted, level, out=product)
        torch.linalg.vecdot(level.square_(), importance, out=square)
    scales = nearest((products / squares.clamp_min_(TINY)).unsqueeze(-1)).squeeze(-1)
    best = (scales * (2 * products - scales * squares)).argmax(0, keepdim=True)
    return scales.gather(0, best)[0].unsqueeze(-1)


def furthest_weight(groups: Tensor) -> Tensor:
    """Return each group's weight furthest from zero, the first of equals as in ggml: [R, N, 1]."""
    return groups.gather(-1, groups.abs().argmax(-1, keepdim=True))


def improve_scales(
    groups: Tensor,
    importance: Tensor,
    levels: NearestLevels,
    scales: Tensor,
    nearest: Callable[[Tensor], Tensor],
    rounds: int,
) -> Tensor:
    """Alternate between nearest levels and the best scale for them; keep the best seen.

    Args:
        groups: weights, float32 [R, N, k].
        importance: [R, N, k].
        levels: the set.
        scales: where to start, [R, N, 1].
        nearest: the nearest scales that can be stored.
        rounds: how often.

    Returns:
        Scales [R, N, 1] as they are stored.
    """
    scales = nearest(scales)
    best, least = scales, torch.full_like(scales, torch.inf)
    for _ in range(rounds):
        error, step = error_and_step(groups, importance, levels, scales)
        better = error < least
        best, least = torch.where(better, scales, best), torch.where(better, error, least)
        scales = nearest(scales + step)
    error = error_and_step(groups, importance, levels, scales)[0]
    return torch.where(error < least, scales, best)


def error_and_step(
    groups: Tensor, importance: Tensor, levels: NearestLevels, scales: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each group's weighted squared error on its nearest levels, and what lessens it most.

    The step is added to the scale while the levels stay. Both are [R, N, 1]. Worked out from the
    residuals, which lose no digits where the error is small.
    """
    level = levels(groups * inverse(scales))
    weighted = level * importance
    square = dot(weighted, level).clamp_min_(TINY)
    residual = groups - level.mul_(scales)
    step = dot(weighted, residual) / square
    return dot(residual.square_(), importance), step
