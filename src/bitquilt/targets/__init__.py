"""Output formats: how an allocation and packed matrices become one file that a stock engine runs.

In: a checkpoint, an allocation, packed matrices. Out: a GGUF file or an MLX directory, its exact
size beforehand, and the checks that it reads back and runs.

A format is one :class:`~bitquilt.targets.base.Target`, listed here. To add one, write a folder
beside ``gguf`` and ``mlx`` and add its instance to :data:`TARGETS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bitquilt.errors import UserError
from bitquilt.targets.base import Target
from bitquilt.targets.gguf import GGUF
from bitquilt.targets.mlx import MLX

if TYPE_CHECKING:
    from bitquilt.qtypes.qtype import QuantType

__all__ = ["ALL", "GGUF", "MLX", "TARGETS", "Target", "get_target", "parse_targets", "target_of"]

TARGETS: dict[str, Target] = {target.name: target for target in (GGUF, MLX)}
"""Every output format by its name; the first is the default."""

ALL = "both"
"""What ``--to`` calls all of them together."""


def get_target(name: str) -> Target:
    """Give the output format of that name.

    Raises:
        UserError: there is none.
    """
    if name not in TARGETS:
        raise UserError(f"{name} is not a file format; choose {' or '.join(TARGETS)}")
    return TARGETS[name]


def target_of(types: Iterable[QuantType]) -> Target:
    """Return the first output format that can hold all of these types.

    Raises:
        ValueError: there is none.
    """
    needed = list(types)
    for target in TARGETS.values():
        if all(target.name in qtype.targets for qtype in needed):
            return target
    raise ValueError("no output format holds all of these types")


def parse_targets(to: str) -> list[Target]:
    """Give the output formats that ``--to`` names: one by its name, or ``both``.

    Raises:
        UserError: there is no such format.
    """
    if to == ALL:
        return list(TARGETS.values())
    if to not in TARGETS:
        raise UserError(f"{to} is not a file format; choose {', '.join(TARGETS)} or {ALL}")
    return [TARGETS[to]]
