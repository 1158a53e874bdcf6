"""The patterns of an i-quant's codebook that are nearest to eight weights.

Comparing a vector with all 256 to 1024 patterns costs too much. But its magnitudes, each rounded to
the few that patterns are made of, put it into one of 6561 (3^8) or 4096 (8^4) cells; a table holds
the patterns nearest to each cell, and only those are compared (docs/decisions/iquant-search.md).
Where a codebook has parts, each has shortlists of its own.

Letters: L inputs, V vectors of 8 weights of each, m weights in a pattern (8 or 4), H = 8 / m
patterns in a vector, K patterns on a shortlist, M magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bitquilt.qtypes.iquants import Codebook, codebook

VECTOR = 8
SHORTLIST_LENGTHS = {8: 32, 4: 16}
"""K for each m: the search is then within 1 % of one through all patterns."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The shortlists of all cells, part by part; all tensors are on one device."""

    lowest: float
    """The smallest magnitude in a pattern."""
    spacing: float
    """The distance from one magnitude to the next; they lie almost evenly."""
    count: int
    """M."""
    places: Tensor
    """float32 [m]: what each weight's magnitude counts in the number of a cell."""
    codes: Tensor
    """int16 [cells, K]: the nearest patterns, nearest first."""
    patterns: Tensor
    """float32 [cells, m K]: those patterns, the K first weights first."""

    def of(self, magnitudes: Tensor, steps: Tensor, part: Tensor | float = 0.0) -> Tensor:
        """Find the cells of magnitudes [..., m H] at steps [..., 1], int32, one for a pattern.

        ``part`` is the place of the part that patterns are of, [..., 1] or one for all.
        """
        ranks = magnitudes / steps.clamp_min(torch.finfo(torch.float32).tiny)
        ranks.sub_(self.lowest).div_(self.spacing).round_().clamp_(0, self.count - 1)
        # [..., m H] -> [..., H, m] -> [..., H]
        cells: Tensor = torch.unflatten(ranks, -1, (-1, len(self.places))) @ self.places
        cells = cells + part * self.count ** len(self.places)
        return cells.int().flatten()

    def shortlist(self, cells: Tensor) -> Tensor:
        """Return the patterns worth comparing, float32 [cells asked for, m, K]."""
        found = self.patterns.index_select(0, cells)
        return found.view(len(cells), len(self.places), self.codes.shape[1])


@cache
def cells_of(qtype: Codebook, size: int, device: torch.device) -> Cells:
    """Build the cells of a type with K = ``size`` patterns each; ties are in the order of codes."""
    patterns, magnitudes = codebook(qtype.name), qtype.magnitudes()
    width = patterns.shape[1]
    centres = torch.cartesian_prod(*[magnitudes] * width)
    parts = patterns.chunk(qtype.parts)
    lists = [i * len(part) + _nearest(centres, part, size) for i, part in enumerate(parts)]
    codes = torch.cat(lists)
    # [cells, K, m] -> [cells, m, K]
    near = patterns[codes].transpose(1, 2).flatten(1)
    places = float(len(magnitudes)) ** torch.arange(width - 1, -1, -1)
    return Cells(
        lowest=magnitudes[0].item(),
        spacing=magnitudes.diff().median().item(),
        count=len(magnitudes),
        places=places.to(device),
        codes=codes.to(torch.int16).to(device),
        patterns=near.to(device),
    )


def _nearest(centres: Tensor, patterns: Tensor, size: int) -> Tensor:
    """Find the patterns [n, m] nearest to centres [cells, m]: int64 [cells, size]."""
    # Squared distances are whole numbers below 2^14: with the code as a tie-break exact in float32.
    distance = torch.cdist(centres, patterns, compute_mode="donot_use_mm_for_euclid_dist")
    order = distance.square().round() * len(patterns) + torch.arange(len(patterns))
    return order.topk(size, largest=False).indices


def choose_signs(qtype: Codebook, vectors: Tensor, importance: Tensor, steps: Tensor) -> Tensor:
    """Choose signs that the type can store: those of the weights, with one turned if need be.

    Where a format keeps 7 of 8 signs, the minuses must be even in number. The sign to turn is that
    of the weight where this costs least, as far as can be told before the patterns are known.

    Args:
        qtype: which format.
        vectors: weights, float32 [..., 8].
        importance: of the weights, [..., 8] or what broadcasts to it.
        steps: what patterns are multiplied with, [..., 1].

    Returns:
        1 and -1, float32 [..., 8].
    """
    if not qtype.signed:
        return torch.ones_like(vectors)
    signs = torch.where(vectors < 0, -1.0, 1.0)
    if not qtype.even_signs:
        return signs
    # (|w| + s g)² - (|w| - s g)² = 4 s g |w|, which is least where h |w| is; but a larger weight
    # would have been nearer to a larger magnitude, hence the second |w|.
    magnitudes = vectors.abs()
    lowest = 2 * codebook(qtype.name).min().item() * steps
    cost = (magnitudes + lowest).mul_(magnitudes).mul_(importance)
    product = signs.prod(-1, keepdim=True)
    turned = torch.ones_like(signs).scatter_(-1, cost.argmin(-1, keepdim=True), product)
    return signs.mul_(turned)


def masks_of(signs: Tensor) -> Tensor:
    """Pack signs [..., 8] as they are stored: uint8 [...], bit k set where sign k is a minus."""
    places = 2.0 ** torch.arange(VECTOR, device=signs.device)
    return ((signs < 0).float() @ places).to(torch.uint8)


def nearest_patterns(
    qtype: Codebook,
    targets: Tensor,
    steps: Tensor,
    triangles: Tensor,
    parts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the patterns closest to vectors, in a metric that the vectors of one input share.

    Close means ‖Tᵀ (target - level)‖² small. Compared are the patterns on the shortlists, with the
    signs of the targets. Where two patterns make up a vector, the second makes up for the first.

    Args:
        qtype: which codebook.
        targets: float32 [L, 8, V].
        steps: what patterns are multiplied with, float32 [L, V].
        triangles: T of each input, float32 [L, 8, 8], upper triangular. A diagonal one weighs each
            weight by itself.
        parts: the place of the part of the codebook that patterns are of, float32 [L, V]; None is
            the first.

    Returns:
        codes int16 [L, H, V], sign masks uint8 [L, V] and levels float32 [L, 8, V].
    """
    vectors = targets.mT.contiguous()
    scales = steps.unsqueeze(2)
    signs = choose_signs(qtype, vectors, triangles.square().sum(2).unsqueeze(1), scales)
    width = codebook(qtype.name).shape[1]
    cells = cells_of(qtype, SHORTLIST_LENGTHS[width], targets.device)
    part = 0.0 if parts is None else parts.unsqueeze(2)
    codes, levels = [], torch.empty_like(signs)
    for first in range(0, VECTOR, width):
        own = slice(first, first + width)
        target = vectors[..., own]
        if first > 0:
            # What the first pattern missed by, as far as the second can make up for it.
            carry = torch.linalg.solve_triangular(
                triangles[:, own, own], triangles[:, :first, own], upper=True, left=False
            )
            target = torch.baddbmm(target, vectors[..., :first] - levels[..., :first], carry)
        found = cells.of(target * signs[..., own], scales, part)
        # [L V, m, K]; levels carry the signs and steps
        near = cells.shortlist(found) * (signs[..., own] * scales).view(-1, width, 1)
        # [L V, m, K] -> [L, V K, m]: one product for all of an input
        miss = (target.reshape(-1, width, 1) - near).transpose(1, 2)
        miss = miss.reshape(len(targets), -1, width) @ triangles[:, own, own]
        cost = (miss.square_() @ miss.new_ones(width)).view(len(near), -1)
        best = cost.argmin(1, keepdim=True)
        codes.append(cells.codes.index_select(0, found).gather(1, best).view(steps.shape))
        nearest = near.gather(2, best.unsqueeze(1).expand(-1, width, 1))
        levels[..., own] = nearest.view(target.shape)
    return torch.stack(codes, 1), masks_of(signs), levels.mT
