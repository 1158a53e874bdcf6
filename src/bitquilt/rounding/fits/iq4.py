"""Fits of ggml's uneven 4-bit formats: IQ4_NL and IQ4_XS.

Letters: R rows, C columns, B super-blocks of 256 along a row, N blocks of 32, S = 8 of them in a
super-block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitquilt.qtypes.ggml import SMALL_BLOCK, SUPER_BLOCK
from bitquilt.qtypes.iq4 import IQ4_NL, IQ4_VALUES, IQ4_XS
from bitquilt.qtypes.qtype import Unpacked
from bitquilt.rounding.fits.family import fit_family
from bitquilt.rounding.fits.groups import TINY, Storage, dot, fit_by_rows, inverse, power_of_two
from bitquilt.rounding.fits.scale_search import (
    error_and_step,
    furthest_weight,
    improve_scales,
    search_scales,
)
from bitquilt.rounding.tables import LevelTable

SUB_BLOCKS = SUPER_BLOCK // SMALL_BLOCK
IQ4_TABLE = LevelTable(IQ4_VALUES, cells=2)
GGML_IQ4_STARTS = (127, *range(-134, -119))
"""The levels on which ggml starts the largest weight."""
IQ4_STARTS = (
    -120, -123, -126, -129, -132, -138, -150, -170, -200,
    108, 113, 118, 125, 135, 150, 175,
)  # fmt: skip
"""The levels on which our search starts it: of either sign, some far beyond the table, to clip."""
SECOND_STARTS = (0.98, 0.99, 0.995, 1.0, 1.005, 1.01, 1.02)
"""The starts of a second search, as multiples of the best scale of the first."""
IQ4_ROUNDS = 2
"""How often codes and scales are refitted in turn."""
LOWEST, HIGHEST = -32, 31
"""The range of the sub-block scales of IQ4_XS."""
LARGEST_SCALE_STARTS = (
    -32.0, -31.5, -31.0, -30.0, -29.0, -28.0, -26.0, -24.0,
    31.0, 30.5, 30.0, 29.0, 28.0, 26.0,
)  # fmt: skip
"""Places among the integers where the largest sub-block scale of a super-block starts."""


@fit_family.register
def _block(qtype: IQ4_NL, weight: Tensor, importance: Tensor) -> Unpacked:

    def fit(groups: Tensor, shares: Tensor) -> Unpacked:
        unit = power_of_two(groups.abs().amax(-1, keepdim=True))
        groups, storage = groups / unit, Storage(torch.float16, unit)
        stock = storage.nearest(_stock(groups, shares, groups))
        scales = _search(groups, shares, storage.nearest)
        scales = improve_scales(
            groups, shares, IQ4_TABLE.levels, scales, storage.nearest, IQ4_ROUNDS
        )
        stock_error, error = (
            error_and_step(groups, shares, IQ4_TABLE.levels, tried)[0] for tried in (stock, scales)
        )
        scales = torch.where(stock_error < error, stock, scales)
        codes = IQ4_TABLE.codes(groups * inverse(scales))
        return {"codes": codes.flatten(1), "d": storage.stored(scales).float().flatten(1)}

    return fit_by_rows(weight, importance, SMALL_BLOCK, fit)


def _stock(groups: Tensor, importance: Tensor, spread_over: Tensor) -> Tensor:
    """Find ggml's scales [R, N, 1], for which errors are weighed with the magnitudes too.

    ``spread_over`` is the weights in its blocks, whose mean square (twice) it adds to each square.
    Source: ggml-quants.c, quantize_row_iq4_nl_impl.
    """
    spread = 2 * spread_over.square().mean(-1, keepdim=True)
    spread = spread.repeat_interleave(groups.shape[1] // spread.shape[1], 1)
    weights = importance * (groups.square() + spread).sqrt_()
    factor = inverse(furthest_weight(groups))
    return search_scales(groups, weights, IQ4_TABLE.levels, factor, GGML_IQ4_STARTS, _as_it_is)


def _as_it_is(scales: Tensor) -> Tensor:
    return scales


def _search(groups: Tensor, importance: Tensor, nearest: Callable[[Tensor], Tensor]) -> Tensor:
    """Scales [R, N, 1] of blocks by themselves."""
    factor = inverse(furthest_weight(groups))
    scales = search_scales(groups, importance, IQ4_TABLE.levels, factor, IQ4_STARTS, nearest)
    return search_scales(
        groups, importance, IQ4_TABLE.levels, inverse(scales), SECOND_STARTS, nearest
    )


@fit_family.register
def _super_block(qtype: IQ4_XS, weight: Tensor, importance: Tensor) -> Unpacked:
    """Blocks by themselves, then the super-block scale that keeps closest to theirs, then both."""

    def fit(supers: Tensor, shares: Tensor) -> Unpacked:
        unit = power_of_two(supers.abs().amax(-1, keepdim=True))
        supers, storage = supers / unit, Storage(torch.float16, unit)
        # [R, B, 256] -> [R, N, 32]
        groups, shares = (
            torch.unflatten(each, 2, (-1, SMALL_BLOCK)).flatten(1, 2) for each in (supers, shares)
        )
        stock = _by_super(_stock(groups, shares, supers))
        d, scales = _joint(groups, shares, _search(groups, shares, _as_it_is), stock, storage)
        codes = IQ4_TABLE.codes(groups * inverse(_steps(d, scales)))
        return {
            "codes": codes.flatten(1),
            "scales": scales.to(torch.int8).flatten(1),
            "d": storage.stored(d).float().flatten(1),
        }

    return fit_by_rows(weight, importance, SUPER_BLOCK, fit)


def _steps(d: Tensor, scales: Tensor) -> Tensor:
    """Scales of blocks [R, N, 1] from super-block scales [R, B, 1] and integers [R, B, S]."""
    return (d * scales).flatten(1).unsqueeze(-1)


def _joint(
    groups: Tensor, importance: Tensor, ideal: Tensor, stock: Tensor, storage: Storage
) -> tuple[Tensor, Tensor]:
    """Find super-block scales [R, B, 1] and the integers [R, B, S] on them, as stored.

    Args:
        groups: blocks [R, N, 32].
        importance: [R, N, 32].
        ideal: scales of the blocks by themselves, [R, N, 1].
        stock: those that ggml finds, [R, B, S].
        storage: of super-block scales.
    """
    # ggml puts the largest scale on the lowest integer.
    d = furthest_weight(stock) / LOWEST
    scales, d = _integers(stock, d), storage.nearest(d)
    error = error_and_step(groups, importance, IQ4_TABLE.levels, _steps(d, scales))[0]
    best, least = (d, scales), _by_super(error).sum(-1, keepdim=True)
    # How much a block minds its scale: the error grows by Σ h l² times the difference squared.
    level = IQ4_TABLE.levels(groups * inverse(ideal))
    pull = _by_super(dot(level.square_(), importance))
    d = storage.nearest(_closest(_by_super(ideal), pull))
    scales = _integers(_by_super(ideal), d)
    for _ in range(IQ4_ROUNDS):
        scales, error, refitted = _neighbours(groups, importance, d, scales)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, d, best[0]), torch.where(better, scales, best[1])
        d = storage.nearest(refitted)
    return best


def _by_super(blocks: Tensor) -> Tensor:
    """Reshape [R, N, 1] to [R, B, S]."""
    return torch.unflatten(blocks.squeeze(-1), 1, (-1, SUB_BLOCKS))


def _integers(ideal: Tensor, d: Tensor) -> Tensor:
    """Return the nearest block scales [R, B, S], of d."""
    return (ideal * inverse(d)).round_().clamp_(LOWEST, HIGHEST)


def _closest(ideal: Tensor, pull: Tensor) -> Tensor:
    """Find the super-block scale [R, B, 1] whose multiples are nearest to what blocks want."""
    factors = inverse(furthest_weight(ideal))
    candidates, costs = [], []
    for place in LARGEST_SCALE_STARTS:
        integer = (ideal * (factors * place)).round_().clamp_(LOWEST, HIGHEST)
        square = dot(pull, integer.square()).clamp_min_(TINY)
        d = dot(pull, ideal * integer) / square
        candidates.append(d)
        costs.append(dot(pull, (ideal - d * integer).square_()))
    best = torch.stack(costs).argmin(0, keepdim=True)
    return torch.stack(candidates).gather(0, best)[0]


def _neighbours(
    groups: Tensor, importance: Tensor, d: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the best of each integer and its neighbours; give their error [R, B, 1] and best d."""
    tried, errors, wanted = [], [], []
    for move in (0, -1, 1):
        integer = (scales + move).clamp_(LOWEST, HIGHEST)
        step = _steps(d, integer)
        error, correction = error_and_step(groups, importance, IQ4_TABLE.levels, step)
        tried.append(integer)
        errors.append(_by_super(error))
        wanted.append(_by_super(step + correction))
    least, best = torch.stack(errors).min(0, keepdim=True)
    scales = torch.stack(tried).gather(0, best)[0]
    ideal = torch.stack(wanted).gather(0, best)[0]
    level = IQ4_TABLE.levels(groups * inverse(_steps(d, scales)))
    pull = _by_super(dot(level.square_(), importance))
    square = dot(pull, scales.square()).clamp_min_(TINY)
    return scales, least[0].sum(-1, keepdim=True), dot(pull, scales * ideal) / square
