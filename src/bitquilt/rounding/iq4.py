"""Fits of ggml's uneven 4-bit formats: IQ4_NL and IQ4_XS.

Letters: R rows, C columns, B super-blocks of 256 along a row, N blocks of 32, S = 8 of them in a
super-block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitquilt.grids.blocks32 import IQ4_NL, IQ4_VALUES
from bitquilt.grids.grid import Fields
from bitquilt.grids.iquants import IQ4_XS, SUPER_BLOCK
from bitquilt.rounding.groups import Storage, dot, fit_by_rows, inverse, power_of_two
from bitquilt.rounding.nearest import fit_family
from bitquilt.rounding.scales import error_and_step, largest, refine_scales, search_scales
from bitquilt.rounding.tables import Table

BLOCK = 32
SUB_BLOCKS = SUPER_BLOCK // BLOCK
VALUES = Table(IQ4_VALUES, cells=2)
MULTIPLES = (*range(-134, -119), -146, -165, -190, -228, 107, 113, 120, 127, 136, 152, 175, 203)
"""Levels that the largest weight starts on: ggml's (-134 … -120, 127), then further clipped."""
NEAR = (0.97, 0.98, 0.99, 0.995, 1.0, 1.005, 1.01, 1.02, 1.03)
"""Second starts, as parts of the best scale of the first."""
ROUNDS = 2
LOWEST, HIGHEST = -32, 31
"""The sub-block scales of IQ4_XS."""
PLACES = (-32.0, -31.5, -31.0, -30.0, -29.0, -28.0, -26.0, -24.0, 31.0, 30.5, 30.0, 29.0, 28.0, 26.0)
"""Sub-block scales that the largest one starts on."""


@fit_family.register
def _block(grid: IQ4_NL, weight: Tensor, importance: Tensor) -> Fields:
    shares = torch.unflatten(importance, 0, (-1, BLOCK))

    def fit(groups: Tensor) -> Fields:
        unit = power_of_two(groups.abs().amax(-1, keepdim=True))
        groups, storage = groups / unit, Storage(torch.float16, unit)
        scales = _search(groups, shares, storage)
        scales = refine_scales(groups, shares, VALUES.levels, scales, storage.nearest, ROUNDS)
        codes = VALUES.codes(groups * inverse(scales))
        return {"codes": codes.flatten(1), "d": storage.stored(scales).float().flatten(1)}

    return fit_by_rows(weight, BLOCK, fit)


def _search(groups: Tensor, importance: Tensor, storage: Storage) -> Tensor:
    """Scales [R, N, 1] of blocks by themselves."""
    levels, nearest = VALUES.levels, storage.nearest
    scales = search_scales(
        groups, importance, levels, inverse(largest(groups)), MULTIPLES, nearest
    )
    return search_scales(groups, importance, levels, inverse(scales), NEAR, nearest)


@fit_family.register
def _super_block(grid: IQ4_XS, weight: Tensor, importance: Tensor) -> Fields:
    """Blocks by themselves, then the super-block scale that keeps closest to theirs, then both."""
    shares = torch.unflatten(importance, 0, (-1, BLOCK))

    def fit(supers: Tensor) -> Fields:
        unit = power_of_two(supers.abs().amax(-1, keepdim=True))
        # [R, B, 256] -> [R, N, 32]
        groups = torch.unflatten(supers / unit, 2, (-1, BLOCK)).flatten(1, 2)
        storage = Storage(torch.float16, unit)
        ideal = _search(groups, shares, Storage(torch.float32, torch.ones_like(groups[..., :1])))
        d, scales = _joint(groups, shares, ideal, storage)
        codes = VALUES.codes(groups * inverse(_steps(d, scales)))
        return {
            "codes": codes.flatten(1),
            "scales": scales.to(torch.int8).flatten(1),
            "d": storage.stored(d).float().flatten(1),
        }

    return fit_by_rows(weight, SUPER_BLOCK, fit)


def _steps(d: Tensor, scales: Tensor) -> Tensor:
    """Scales of blocks [R, N, 1] from super-block scales [R, B, 1] and integers [R, B, S]."""
    return (d * scales).flatten(1).unsqueeze(-1)


def _joint(
    groups: Tensor, importance: Tensor, ideal: Tensor, storage: Storage
) -> tuple[Tensor, Tensor]:
    """Super-block scales [R, B, 1] and the integers [R, B, S] on them, as they are stored."""
    # How much a block minds its scale: the error grows by Σ h l² times the difference squared.
    level = VALUES.levels(groups * inverse(ideal))
    pull = _by_super(dot(level.square_(), importance))
    d = storage.nearest(_closest(_by_super(ideal), pull))
    scales = _integers(_by_super(ideal), d)
    best, least = (d, scales), torch.full_like(d, torch.inf)
    for _ in range(ROUNDS):
        scales, error, refitted = _neighbours(groups, importance, d, scales)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, d, best[0]), torch.where(better, scales, best[1])
        d = storage.nearest(refitted)
    return best


def _by_super(blocks: Tensor) -> Tensor:
    """[R, N, 1] to [R, B, S]."""
    return torch.unflatten(blocks.squeeze(-1), 1, (-1, SUB_BLOCKS))


def _integers(ideal: Tensor, d: Tensor) -> Tensor:
    """The nearest block scales [R, B, S], of d."""
    return (ideal * inverse(d)).round_().clamp_(LOWEST, HIGHEST)


def _closest(ideal: Tensor, pull: Tensor) -> Tensor:
    """The super-block scale [R, B, 1] whose multiples are closest to what blocks want [R, B, S]."""
    factors = inverse(largest(ideal))
    candidates, costs = [], []
    for place in PLACES:
        integer = (ideal * (factors * place)).round_().clamp_(LOWEST, HIGHEST)
        square = dot(pull, integer.square()).clamp_min_(torch.finfo(torch.float32).tiny)
        d = dot(pull, ideal * integer) / square
        candidates.append(d)
        costs.append(dot(pull, (ideal - d * integer).square_()))
    best = torch.stack(costs).argmin(0, keepdim=True)
    return torch.stack(candidates).gather(0, best)[0]


def _neighbours(
    groups: Tensor, importance: Tensor, d: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The best of each integer and those next to it; the error [R, B, 1]; the best d for them."""
    tried, errors, wanted = [], [], []
    for move in (0, -1, 1):
        integer = (scales + move).clamp_(LOWEST, HIGHEST)
        step = _steps(d, integer)
        error, correction = error_and_step(groups, importance, VALUES.levels, step)
        tried.append(integer)
        errors.append(_by_super(error))
        wanted.append(_by_super(step + correction))
    least, best = torch.stack(errors).min(0, keepdim=True)
    scales = torch.stack(tried).gather(0, best)[0]
    ideal = torch.stack(wanted).gather(0, best)[0]
    level = VALUES.levels(groups * inverse(_steps(d, scales)))
    pull = _by_super(dot(level.square_(), importance))
    square = dot(pull, scales.square()).clamp_min_(torch.finfo(torch.float32).tiny)
    return scales, least[0].sum(-1, keepdim=True), dot(pull, scales * ideal) / square
