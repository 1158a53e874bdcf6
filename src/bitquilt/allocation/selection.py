"""Which of a few allocations is best, on text that none of them was chosen by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bitquilt.allocation.racing import CLEARLY, Difference
from bitquilt.allocation.space import Float64Array


@dataclass(frozen=True)
class Ranking:
    """Where one allocation stands among those that were compared."""

    name: str
    """The method that found the allocation, or the preset that it is."""
    kl: float
    """Its KL on the text that decides, in nats per token."""
    behind: Difference
    """Its KL less that of the best."""

    def __str__(self) -> str:
        if not self.behind.error:
            return f"{self.name} {self.kl:.4g}"
        best = self.kl - self.behind.mean
        more, error = (100 * x / best for x in (self.behind.mean, CLEARLY * self.behind.error))
        return f"{self.name} {self.kl:.4g} ({more:.1f} ± {error:.1f} % behind)"


def rank(samples: Mapping[str, Float64Array]) -> list[Ranking]:
    """Rank allocations by mean KL, best first; equals stay in their order.

    Args:
        samples: name → KL [n] at the same places of the text for all allocations.
    """
    ranked = sorted(samples, key=lambda name: float(samples[name].mean()))
    best = samples[ranked[0]]
    return [
        Ranking(name, float(samples[name].mean()), Difference.of(samples[name], best))
        for name in ranked
    ]
