"""The size that the user asks for: bits per weight of the tensors, or bytes on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitquilt.runtime.sizes import human, parse_size

if TYPE_CHECKING:
    from bitquilt.config import PlanConfig
    from bitquilt.targets.layout import Layout


@dataclass(frozen=True)
class Budget:
    """An exact limit, given one way or the other."""

    bits: float | None = None
    """Bits per weight of all tensors; neither tokenizer nor metadata count."""
    size: int | None = None
    """Bytes of everything on disk."""

    def __str__(self) -> str:
        return f"--bits={self.bits:.12g}" if self.size is None else human(self.size)

    def nbytes(self, weights: int) -> int:
        """Return the limit in bytes for a model of that many weights.

        The bytes are those of the tensors where bits are given, else of everything on disk.
        """
        if self.size is not None:
            return self.size
        assert self.bits is not None
        return int(self.bits * weights / 8)

    def capacity(self, layout: Layout) -> int:
        """Return the bytes that the matrices may take together.

        Args:
            layout: says what a file has beside its matrices.
        """
        beside = layout.norm_bytes if self.size is None else layout.fixed_bytes
        return self.nbytes(layout.weights) - beside


def budgets_of(config: PlanConfig) -> list[Budget]:
    """Return the budgets that are asked for; none where a preset or a recipe decides."""
    if config.size is not None:
        return [Budget(size=parse_size(config.size))]
    return [Budget(bits=bits) for bits in config.several_bits if bits is not None]


def label_of(bits: float | None, size: str | None, recipe: str | Path | None) -> str:
    """What file names say of a request; budgets that differ have labels that differ."""
    parts = []
    if bits is not None:
        parts.append(f"{bits:.12g}bit")
    if size is not None:
        parts.append(size.replace(" ", ""))
    if recipe is not None:
        parts.append(Path(recipe).name.removesuffix(".json"))
    return "-".join(parts)
