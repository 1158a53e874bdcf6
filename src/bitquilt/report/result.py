"""What a run made, for people and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitquilt.allocation.selection import Ranking
from bitquilt.metrics.teacher import Figures


@dataclass(frozen=True)
class RecipeResult:
    """One recipe that a search wrote."""

    target: str
    path: Path
    nbytes: int
    """Of the file that it is for."""
    bits: float
    """Bits per weight of that file, everything in it counted."""
    mix: str
    """Where the mix comes from: the search, the knapsack, a preset's name, or ``recipe``."""
    verdicts: tuple[Ranking, ...]
    """The mixes that it was chosen from, best first."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self) | {"path": str(self.path)}


@dataclass(frozen=True)
class Output:
    """One file that was made."""

    target: str
    path: Path
    nbytes: int
    bits: float
    """Bits per weight, everything in the file counted."""
    allocation: dict[str, str]
    """Module path → type name."""
    mix: str
    """Where that comes from: the search, the knapsack, a preset's name, or ``recipe``."""
    verdicts: tuple[Ranking, ...]
    """The mixes that it was chosen from, best first; none where a recipe said it all."""
    figures: Figures
    """Measured by torch on the weights read back from the file."""
    engine: Figures | None
    """Measured by the engine that runs the file, on fewer windows; None where it is missing."""
    note: str
    """What the engine's check found, or why there was none."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self) | {"path": str(self.path)}


@dataclass(frozen=True)
class Result:
    """What :func:`bitquilt.quantize` did."""

    model: str
    original: Figures
    outputs: list[Output]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self) | {"outputs": [output.to_dict() for output in self.outputs]}
