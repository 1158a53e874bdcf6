"""What the patterns nearest to some weights cost at any step, for fits of the i-quants.

A pattern g at step s costs Σ h (w - s g)² = s (s square - product) + what is the same for all, with
product = 2 Σ h w g and square = Σ h g². On a CPU both are worked out once for a shortlist; a GPU
works them out anew for every step, in one kernel: writing them takes it longer.

Letters: R rows, G = C / 8 vectors along a row, B super-blocks along a row, n sub-blocks in a
super-block, m weights in a pattern, N = R C / m patterns, K on a shortlist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bitquilt.qtypes.iquants import Codebook, codebook
from bitquilt.rounding import kernels
from bitquilt.rounding.codebooks import cells_of


@dataclass(frozen=True)
class PatternVectors:
    """Weights that patterns are to stand for."""

    qtype: Codebook
    """The type whose patterns they are."""
    magnitudes: Tensor
    """Weights, each times the sign that is stored for it, float32 [R, G, 8]."""
    shares: Tensor
    """Their importance h, float32 [R, G, 8]."""

    @property
    def width(self) -> int:
        """Weights in a pattern, m."""
        return codebook(self.qtype.name).shape[1]

    def repeats(self, steps: Tensor, width: int) -> int:
        """Return how many parts of so many weights share one of steps [R, B, n]."""
        return self.magnitudes.numel() // steps.numel() // width


class Cheapest(NamedTuple):
    """The cheapest patterns at some steps."""

    codes: Tensor
    """int16 [N]."""
    product: Tensor
    """float32 [N]."""
    square: Tensor
    """float32 [N]."""


class Shortlists(Protocol):
    """The patterns that may stand for each m weights."""

    def least_costs(self, tried: Sequence[Tensor]) -> list[Tensor]:
        """Return what the cheapest cost at each of some steps [R, B, n], summed to [R, B, n]."""

    def cheapest(self, steps: Tensor) -> Cheapest:
        """Return the cheapest at steps [R, B, n]."""


def shortlists(vectors: PatternVectors, steps: Tensor, size: int) -> Shortlists:
    """Return the K = ``size`` patterns that are nearest at steps [R, B, n]."""
    if kernels.serve_patterns(vectors.qtype, steps):
        return _InKernel(vectors, steps, size)
    parts = [_worked_out(vectors, steps, size, part) for part in range(vectors.qtype.parts)]
    return parts[0] if len(parts) == 1 else _Parts(parts)


@dataclass(frozen=True)
class _WorkedOut:
    """Shortlists with what each pattern costs."""

    vectors: PatternVectors
    codes: Tensor
    """int16 [N, K]."""
    product: Tensor
    """float32 [K, N]."""
    square: Tensor
    """float32 [K, N]."""

    def least_costs(self, tried: Sequence[Tensor]) -> list[Tensor]:
        """Return what the cheapest cost."""
        found = []
        for steps in tried:
            each = self._by_pattern(steps)
            found.append(self._costs(each).amin(0).mul_(each).view(*steps.shape, -1).sum(-1))
        return found

    def cheapest(self, steps: Tensor) -> Cheapest:
        """Return the cheapest."""
        costs = self._costs(self._by_pattern(steps))
        # What argmin(0) would find, which is slow in torch on a CPU.
        ranks = torch.arange(len(costs), dtype=torch.uint8, device=costs.device).unsqueeze(1)
        rank = (costs == costs.amin(0)).to(torch.uint8).mul_(ranks).amax(0).long().unsqueeze(0)
        product, square = self.product.gather(0, rank)[0], self.square.gather(0, rank)[0]
        return Cheapest(self.codes.gather(1, rank.T).squeeze(1), product, square)

    def _costs(self, steps: Tensor) -> Tensor:
        """Return the costs [K, N] at steps [N], divided by the steps."""
        return (self.square * steps).sub_(self.product)

    def _by_pattern(self, steps: Tensor) -> Tensor:
        """Repeat steps [R, B, n] so that each pattern has its own, [N]."""
        return repeated(steps, self.vectors.repeats(steps, self.vectors.width)).flatten()


def _worked_out(vectors: PatternVectors, steps: Tensor, size: int, part: int) -> _WorkedOut:
    """Look the patterns of a part up, and work out what they cost."""
    cells, width = cells_of(vectors.qtype, size, steps.device), vectors.width
    magnitudes, rows = vectors.magnitudes, len(steps)
    vector = magnitudes.shape[-1]
    of_vectors = repeated(steps, vectors.repeats(steps, vector)).view(rows, -1, 1)
    found = cells.of(magnitudes, of_vectors, float(part))
    # [N, m, K] -> [R, C / m, m, K]
    patterns = cells.shortlist(found).unflatten(0, (rows, -1))
    weighted = (magnitudes * (2 * vectors.shares)).view(rows, -1, width, 1)
    product = (patterns * weighted).sum(2)
    square = patterns.square_().mul_(vectors.shares.view(rows, -1, width, 1)).sum(2)
    return _WorkedOut(
        vectors,
        cells.codes.index_select(0, found),
        product.flatten(0, 1).T.contiguous(),
        square.flatten(0, 1).T.contiguous(),
    )


@dataclass(frozen=True)
class _Parts:
    """Shortlists of each part of a codebook: what is under one step takes all of one part."""

    each: Sequence[_WorkedOut]

    def least_costs(self, tried: Sequence[Tensor]) -> list[Tensor]:
        """Return what the cheapest cost, of the cheapest part."""
        found = [part.least_costs(tried) for part in self.each]
        return [torch.stack(costs).amin(0) for costs in zip(*found, strict=True)]

    def cheapest(self, steps: Tensor) -> Cheapest:
        """Return the cheapest, of the cheapest part."""
        best = torch.stack([part.least_costs([steps])[0] for part in self.each]).argmin(0)
        vectors = self.each[0].vectors
        # [R, B, n] -> [1, N]
        taken = repeated(best, vectors.repeats(steps, vectors.width)).view(1, -1)
        found = zip(*(part.cheapest(steps) for part in self.each), strict=True)
        return Cheapest(*(torch.stack(numbers).gather(0, taken)[0] for numbers in found))


@dataclass(frozen=True)
class _InKernel:
    """Shortlists that a kernel looks up and compares."""

    vectors: PatternVectors
    listed_at: Tensor
    """The steps at which they are looked up, [R, B, n]."""
    size: int
    """K."""

    def least_costs(self, tried: Sequence[Tensor]) -> list[Tensor]:
        """Return what the cheapest cost."""
        steps = torch.stack(list(tried))
        _, *sums = self._cheapest(steps)
        # [tried, N] -> [tried, R, B, n]
        product, square = (each.view(*steps.shape, -1).sum(-1) for each in sums)
        return list(steps * (steps * square - product))

    def cheapest(self, steps: Tensor) -> Cheapest:
        """Return the cheapest."""
        codes, product, square = self._cheapest(steps.unsqueeze(0))
        return Cheapest(codes[0], product[0], square[0])

    def _cheapest(self, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes, products and squares, [tried, N] each, at steps [tried, R, B, n]."""
        own = self.vectors
        return kernels.cheapest_patterns(
            own.qtype, self.size, (own.magnitudes, own.shares), self.listed_at, steps
        )


def repeated(numbers: Tensor, count: int) -> Tensor:
    """Repeat each number ``count`` times: [...] -> [..., count]."""
    return numbers.unsqueeze(-1).expand(*numbers.shape, count).contiguous()
