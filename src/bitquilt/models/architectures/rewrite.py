"""What bitquilt knows of a family that no engine runs as published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from bitquilt.models.architectures.conditions import Condition
from bitquilt.models.checkpoint import Finding
from bitquilt.models.config import ModelConfig


@dataclass(frozen=True)
class TensorOrigin:
    """Where one canonical tensor comes from."""

    source: str | None
    """Tensor name in the source; None for a norm of ones that the rewrite adds."""
    rows: torch.Tensor | None = None
    """int64 row order to apply, [R]."""


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """How the checkpoints of one family become another family's, exactly."""

    model_type: str
    """As published."""
    about: str
    """Which models those are, for error messages."""
    complete: Callable[[ModelConfig], ModelConfig]
    """Config as published → the same with every default filled in."""
    conditions: tuple[Condition, ...]
    """What the completed config must say for the rewrite to be exact."""
    rewritten: Callable[[ModelConfig], ModelConfig]
    """Completed config → canonical config, whose own defaults are still to be filled in."""
    origin: Callable[[str, ModelConfig], TensorOrigin]
    """Name of a canonical tensor, canonical config → where the tensor comes from."""
    findings: Callable[[ModelConfig], list[Finding]]
    """Config as published → what is odd about it."""
    fields: Mapping[str, str]
    """Letter of a dimension → the published field that decides it, where it is another one."""
