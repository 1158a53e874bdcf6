"""Fits of the i-quants with codebooks: IQ1_S to IQ3_S.

A step is u (2 scale + 1): a unit u for each super-block, a scale of 0 … 15 (IQ1: 0 … 7) for each
sub-block. Every sub-block gets the step that suits it best, from a wide scan; u is chosen so that
those steps lie near what scales can say; neighbouring scales are tried on longer shortlists of
patterns; and u is fitted to the patterns found (docs/decisions/iquant-search.md).

Letters: R rows, C columns, G = C / 8 vectors along a row, B = C / 256 super-blocks along a row,
n sub-blocks in a super-block, m weights in a pattern, N = R C / m patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitquilt.qtypes.ggml import SUPER_BLOCK
from bitquilt.qtypes.iquants import Codebook, codebook
from bitquilt.qtypes.qtype import Unpacked
from bitquilt.rounding.codebooks import SHORTLIST_LENGTHS, VECTOR, choose_signs, masks_of
from bitquilt.rounding.fits.family import fit_family
from bitquilt.rounding.fits.groups import TINY, fit_by_rows, power_of_two
from bitquilt.rounding.fits.shortlists import PatternVectors, Shortlists, repeated, shortlists

SHORTLIST_CHUNK = 1 << 17
"""Weights at a time on a CPU: shortlists of more leave the cache; with fewer, threads wait."""
FIRST_STEP_REACH = {"IQ1": 1.5, "IQ2": 2.0, "IQ3": 2.5}
"""The largest magnitude stands for this many root mean squares at the first step."""
CENTRES = (0.7, 0.98, 1.37, 1.9)
"""Patterns are shortlisted at these multiples of the first step."""
AROUND = (0.84, 0.92, 1.0, 1.09, 1.19)
"""The shortlisted are compared at these multiples of the step they were listed at."""
QUICK = 16
"""The length of a shortlist in that scan. On a CPU 8 are no faster: torch vectorizes by 16."""
LARGEST_MULTIPLES = tuple(25.0 + i / 2 for i in range(28))
"""The largest step of a super-block is tried as so many units where scales reach 31."""
CODEBOOK_SCALE_NEIGHBOURS = {8: (-1, 0, 1), 4: (-2, -1, 0, 1, 2)}
"""Steps to the neighbouring scales that are compared on longer shortlists, for each m."""
LEAST_STEP = 1e-10
"""The least step, where weights are near one: sub-blocks of zeros need one too."""


@fit_family.register
def _codebook(qtype: Codebook, weight: Tensor, importance: Tensor) -> Unpacked:

    def fit(blocks: Tensor, shares: Tensor) -> Unpacked:
        # [R, B, 256] -> [R, G, 8]
        return _fit(qtype, blocks, shares.view(len(shares), -1, VECTOR))

    return fit_by_rows(weight, importance, SUPER_BLOCK, fit, SHORTLIST_CHUNK)


def _fit(qtype: Codebook, blocks: Tensor, shares: Tensor) -> Unpacked:
    """Fit some rows as super-blocks [R, B, 256]; shares [R, G, 8] is the importance."""
    power = power_of_two(blocks.abs().amax(-1, keepdim=True))
    # No type has a place for what is not finite; the caller refuses it.
    vectors = (blocks / power).nan_to_num_(0.0, 0.0, 0.0).view(len(blocks), -1, VECTOR)

    def to_stored(units: Tensor) -> Tensor:
        return (units * power / qtype.unit).half().float()

    def as_stored(units: Tensor) -> Tensor:
        return to_stored(units) * qtype.unit / power

    search = StepSearch.start(qtype, vectors, shares)
    units, scales = nearest_scales(search.best_steps(), qtype.top_scale)
    units, scales, codes = search.settle(as_stored(units), scales, as_stored)
    signs = {"signs": search.signs} if qtype.signed else {}
    return {
        "codes": codes.view(len(blocks), -1),
        **signs,
        "scales": scales.to(torch.uint8).flatten(1),
        "d": to_stored(units).flatten(1),
    }


def nearest_scales(steps: Tensor, top_scale: int) -> tuple[Tensor, Tensor]:
    """Find units [R, B, 1] and scales [R, B, n] closest to steps [R, B, n], in least squares.

    An error at a step that is off by a share of itself grows with that share, squared, times what
    the sub-block holds, which grows with the step, squared.
    """
    reach = (2 * top_scale + 1) / 31
    multiples = steps.new_tensor(LARGEST_MULTIPLES).mul_(reach).view(-1, 1, 1, 1)
    units = steps.amax(-1, keepdim=True) / multiples
    scales = (steps / units).sub_(1).div_(2).round_().clamp_(0, top_scale)
    misses = torch.addcmul(steps, 2 * scales + 1, units, value=-1).square_().sum(-1, keepdim=True)
    best = misses.argmin(0, keepdim=True)
    return units.gather(0, best)[0], scales.gather(0, best.expand_as(scales[:1]))[0]


@dataclass(frozen=True, kw_only=True)
class StepSearch:
    """The search over steps and patterns for some rows whose weights are near one."""

    qtype: Codebook
    width: int
    """m."""
    magnitudes: Tensor
    """[R, G, 8]: see weights, each times its sign."""
    signs: Tensor
    """uint8 [R, G]."""
    shares: Tensor
    """[R, G, 8]."""
    first: Tensor
    """[R, B, n]: a first guess of the steps."""

    @classmethod
    def start(cls, qtype: Codebook, vectors: Tensor, shares: Tensor) -> StepSearch:
        """Guess steps from root mean squares; settle the signs [R, G, 8] under them."""
        patterns = codebook(qtype.name)
        width, count = patterns.shape[1], qtype.sub_block // VECTOR
        total = torch.linalg.vecdot(vectors.square(), shares).unflatten(1, (-1, count)).sum(-1)
        reach = FIRST_STEP_REACH[qtype.name[:3]]
        share = shares.sum(-1).unflatten(1, (-1, count)).sum(-1)
        first = (total / share).sqrt_().mul_(reach / patterns.max().item())
        first.clamp_min_(LEAST_STEP)
        of_vectors = repeated(first, count).view(len(first), -1, 1)
        signs = choose_signs(qtype, vectors, shares, of_vectors)
        blocks = first.unflatten(1, (-1, SUPER_BLOCK // qtype.sub_block))
        return cls(
            qtype=qtype,
            width=width,
            magnitudes=vectors * signs,
            signs=masks_of(signs),
            shares=shares,
            first=blocks,
        )

    def best_steps(self) -> Tensor:
        """Find the step that suits each sub-block best, whatever the others take: [R, B, n]."""
        tried, costs = [], []
        for centre in CENTRES:
            around = [self.first * (centre * multiple) for multiple in AROUND]
            tried += around
            costs += self._shortlists(self.first * centre, QUICK).least_costs(around)
        return _cheapest(tried, costs)

    def settle(
        self, units: Tensor, scales: Tensor, as_stored: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose among neighbouring scales, then patterns, then units that fit them, then patterns.

        Args:
            units: float32 [R, B, 1], as they are stored.
            scales: float32 [R, B, n].
            as_stored: rounds units to what can be stored.

        Returns:
            units, scales and codes int16 [N].
        """
        lists = self._shortlists(units * (2 * scales + 1), SHORTLIST_LENGTHS[self.width])
        near = [
            (scales + shift).clamp_(0, self.qtype.top_scale)
            for shift in CODEBOOK_SCALE_NEIGHBOURS[self.width]
        ]
        scales = _cheapest(near, lists.least_costs([units * (2 * each + 1) for each in near]))
        multiples = 2 * scales + 1
        _, *sums = lists.cheapest(units * multiples)
        product, square = (each.view(*scales.shape, -1).sum(-1) for each in sums)
        product = (product * multiples).sum(-1, keepdim=True)
        square = (square * multiples.square()).sum(-1, keepdim=True)
        fitted = as_stored(product / (2 * square).clamp_min_(TINY))
        better = fitted * (fitted * square - product) < units * (units * square - product)
        units = torch.where(better, fitted, units)
        return units, scales, lists.cheapest(units * multiples)[0]

    def _shortlists(self, steps: Tensor, size: int) -> Shortlists:
        """Return the patterns nearest at those steps [R, B, n]."""
        vectors = PatternVectors(self.qtype, self.magnitudes, self.shares)
        return shortlists(vectors, steps, size)


def _cheapest(tried: Sequence[Tensor], costs: Sequence[Tensor]) -> Tensor:
    """Take, of the numbers tried, each [R, B, n], those that cost least."""
    best = torch.stack(list(costs)).argmin(0, keepdim=True)
    return torch.stack(list(tried)).gather(0, best)[0]
