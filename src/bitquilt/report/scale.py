"""From values to places in a plot, and the round numbers along its axes."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Linear:
    """Values from ``low`` to ``high`` onto places from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value, to a tenth of a unit."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int = 6) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten, at most so many."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]


@dataclass(frozen=True)
class Log:
    """Places on a logarithmic axis; all values are positive."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value, to a tenth of a unit."""
        inside = min(max(value, self.low), self.high)
        share = math.log(inside / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten; only powers where that would be many."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if len(powers) <= 4 else (1,)
        return [
            float(f"{m}e{p}") for p in powers for m in steps if self.low <= m * 10.0**p <= self.high
        ]


def span(values: list[float], margin: float = 0.08) -> tuple[float, float]:
    """Ends of a linear axis with some room on both sides of the values."""
    low, high = min(values), max(values)
    room = margin * (high - low) or 0.1 * abs(high) or 1.0
    return max(0.0, low - room) if low >= 0 else low - room, high + room


def log_span(values: list[float], margin: float = 1.25) -> tuple[float, float]:
    """Ends of a logarithmic axis with some room beyond the values; at least a factor of three."""
    low, high = min(values) / margin, max(values) * margin
    widen = math.sqrt(max(1.0, 3 * low / high))
    return low / widen, high * widen


def short(value: float) -> str:
    """Write a number as short as a tick's label should be."""
    return f"{value:.6g}"
