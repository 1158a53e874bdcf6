"""The results of runs, for people and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitquilt.allocation.selection import Ranking
from bitquilt.metrics.teacher import HeldOutFigures
from bitquilt.qtypes.qtype import Allocation
from bitquilt.targets.engine_check import EngineExcerpt


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """One recipe that :func:`bitquilt.search` wrote."""

    target: str
    """The format of the file that the recipe is for."""
    path: Path
    nbytes: int
    """The size of that file."""
    bits: float
    """Bits per weight of that file's tensors."""
    bits_on_disk: float
    """Bits per weight of everything that file has on disk."""
    source: str
    """Where the allocation comes from: a search method, a preset's name, or ``recipe``."""
    rankings: tuple[Ranking, ...]
    """The allocations that it was chosen from, best first; none where there was one only."""
    work_dir: Path
    """Where the stages keep their results."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self) | {"path": str(self.path), "work_dir": str(self.work_dir)}


@dataclass(frozen=True, kw_only=True)
class Output:
    """One file that :func:`bitquilt.quantize` made."""

    target: str
    """The format of the file."""
    path: Path
    nbytes: int
    bits: float
    """Bits per weight of the tensors, as llama.cpp and mlx-lm count them."""
    bits_on_disk: float
    """Bits per weight of everything on disk, tokenizer and metadata too."""
    allocation: Allocation
    source: str
    """Where the allocation comes from: a search method, a preset's name, or ``recipe``."""
    rankings: tuple[Ranking, ...]
    """The allocations that it was chosen from, best first; none where there was one only."""
    figures: HeldOutFigures
    """Measured by torch on the weights read back from the file."""
    engine: EngineExcerpt | None
    """The file in its engine and in torch, on the same excerpt of that text, of the kind
    that is the headline; None where it was not run."""
    note: str
    """What the engine's check found, or why there was none."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self) | {"path": str(self.path)}


@dataclass(frozen=True, kw_only=True)
class QuantizeResult:
    """What :func:`bitquilt.quantize` did."""

    model: str
    stored_as: str
    """What the original is stored as: ``BF16``, or ``Q4_1`` where it is quantized itself."""
    original: HeldOutFigures
    """The figures of the full-precision model: its perplexity, and a KL of zero."""
    outputs: list[Output]
    vision: Path | None
    """The file beside them that has the vision tower; None where there is none."""
    seconds: float
    """The time that this run took."""
    work_dir: Path
    """Where the stages keep their results."""
    seconds_in_all: float
    """The time that all runs on the work directory took, interrupted ones and this one."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        outputs = [output.to_dict() for output in self.outputs]
        paths = {"work_dir": str(self.work_dir), "vision": self.vision and str(self.vision)}
        return asdict(self) | {"outputs": outputs, **paths}
