"""The search over the codebooks of the i-quants: the patterns nearest to eight weights.

Comparing a vector with all 256 to 1024 patterns costs too much. But its magnitudes, each rounded to
the few that patterns are made of, put it into one of 6561 (3^8) or 4096 (8^4) cells; a table holds
the patterns nearest to each cell, and only those are compared (docs/decisions/iquant-search.md).

Letters: V vectors of 8 weights, m weights in a pattern (8 or 4), H = 8 / m patterns in a vector,
K patterns on a shortlist, L magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bitquilt.grids.iquants import Codebook, codebook

VECTOR = 8


@dataclass(frozen=True)
class Cells:
    """The shortlist of every cell; all tensors are on one device."""

    lowest: float
    """The smallest magnitude in a pattern."""
    spacing: float
    """From one magnitude to the next, near enough: they lie almost evenly."""
    count: int
    """L."""
    places: Tensor
    """float32 [m]: what each weight's magnitude counts in the number of a cell."""
    codes: Tensor
    """int16 [cells, K]: the nearest patterns, nearest first."""
    patterns: Tensor
    """float32 [cells, m K]: those patterns, the K first weights first."""

    def of(self, magnitudes: Tensor, steps: Tensor) -> Tensor:
        """The cell of each pattern, int32 [V H], of magnitudes [V, 8] and steps [V, 1]."""
        ranks = magnitudes / steps.clamp_min(torch.finfo(torch.float32).tiny)
        ranks.sub_(self.lowest).div_(self.spacing).round_().clamp_(0, self.count - 1)
        # [V, 8] -> [V H, m]
        return (ranks.view(-1, len(self.places)) @ self.places).int()

    def shortlist(self, cells: Tensor) -> Tensor:
        """The patterns worth comparing, float32 [V H, m, K]."""
        found = self.patterns.index_select(0, cells)
        return found.view(len(cells), len(self.places), self.codes.shape[1])


@cache
def cells_of(name: str, size: int, device: torch.device) -> Cells:
    """The cells of a grid with K = ``size`` patterns each. The order of equals is that of codes."""
    patterns = codebook(name)
    count, width = patterns.shape
    magnitudes = patterns.unique()
    centres = torch.cartesian_prod(*[magnitudes] * width)
    # Squared distances are whole numbers below 2^14: with the code as a tie-break exact in float32.
    distance = torch.cdist(centres, patterns, compute_mode="donot_use_mm_for_euclid_dist")
    order = distance.square().round() * count + torch.arange(count)
    codes = order.topk(size, largest=False).indices
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


def split_signs(
    grid: Codebook, vectors: Tensor, importance: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor]:
    """Take the signs off, as the grid can store them.

    Where a format keeps 7 of 8 signs and the minuses are odd in number, one sign is turned: that of
    the weight where it costs least if both it and its opposite are rounded to the smallest
    magnitude there is.

    Args:
        grid: which format.
        vectors: weights, float32 [..., 8].
        importance: of the weights, [..., 8] or what broadcasts to it.
        steps: what patterns are multiplied with, [..., 1].

    Returns:
        magnitudes [..., 8], negative where a sign was turned, and sign masks uint8 [...].
    """
    places = 2.0 ** torch.arange(VECTOR, device=vectors.device)
    negative = (vectors < 0).float()
    magnitudes = vectors.abs()
    if grid.even_signs:
        lowest = codebook(grid.name).min().item()
        odd = negative.sum(-1, keepdim=True).remainder_(2)
        cost = torch.addcmul(magnitudes, steps, vectors.new_tensor(2 * lowest))
        cost.mul_(magnitudes).mul_(importance)
        turned = torch.zeros_like(negative).scatter_(-1, cost.argmin(-1, keepdim=True), odd)
        negative = (negative - turned).abs_()
        magnitudes = magnitudes * (1 - 2 * turned)
    return magnitudes, (negative @ places).to(torch.uint8)
