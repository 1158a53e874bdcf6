"""Sizes and types of files of a model that has no tables, from its base alone.

No text is read, so that types for a budget are a first guess, as :mod:`bitquilt.allocation.plan`
makes one: rounding error falls fourfold with each bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitquilt import qtypes
from bitquilt.allocation.budget import budgets_of
from bitquilt.bases.served_base import end_served
from bitquilt.config import QuantizeConfig
from bitquilt.converted.allocation import (
    asked_types,
    best_allocation,
    candidates_of,
    planned_file,
    recipe_of,
)
from bitquilt.converted.formats import FORMATS
from bitquilt.converted.formats.base_format import BaseFormat, takes_rounding
from bitquilt.converted.prediction import Nats
from bitquilt.models.sources.adapter import about_adapter
from bitquilt.runtime.device import computing
from bitquilt.runtime.files import refuse_file
from bitquilt.runtime.progress import Progress
from bitquilt.streaming.base import base_name
from bitquilt.streaming.quantize_gguf import GgufPlan
from bitquilt.targets import parse_targets

PLAIN_BITS = 16.0
"""Of types that are only copied."""


@dataclass(frozen=True, kw_only=True)
class BasePlan(GgufPlan):
    """A file to be made of a base."""

    target: str
    """``gguf`` or ``mlx``."""
    exact: bool
    """Whether a preset or a recipe decides all types, so that the bytes are those of the file. For
    a budget, a file may have a few bytes more or less, and never more than the budget."""


def plan_base(
    model: str | Path,
    config: QuantizeConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> list[BasePlan]:
    """Give the sizes and types of what :func:`bitquilt.quantize_base` would write.

    Of a base that is not there, llama.cpp's converter writes the header only; mlx-lm writes it
    all, and it stays for ``quantize``.

    Args:
        model: hub id or Hugging Face directory.
        config: what is wanted.
        progress: told what goes on; stderr if not given.
        options: fields of :class:`bitquilt.QuantizeConfig`, instead of a config.

    Returns:
        A plan for each format and budget.

    Raises:
        UserError: bad input, no converter, a size that cannot be met: one sentence.
    """
    config, progress = QuantizeConfig.of(config, options), progress or Progress()
    config.refuse_unused_by_a_base()
    refuse_file(Path(config.output), "--output")
    recipe_of(config)
    plans: list[BasePlan] = []
    told: dict[str, None] = {}
    with computing(config.device, config.threads):
        for target in parse_targets(config.to):
            kind = FORMATS[target.name]
            directory, path = kind.convert(model, config, progress, whole=False)
            told |= {found.message: None for found in about_adapter(directory)}
            try:
                base = kind.open(path, base_name(model, directory), config)
                plans += _plans(base, config)
            finally:
                end_served(path)
    for note in told:
        progress.say(note)
    return plans


def _plans(base: BaseFormat, config: QuantizeConfig) -> Iterator[BasePlan]:
    types = asked_types(base, config)
    if types is not None:
        plan = planned_file(base, config, types, None, None)
        yield BasePlan(**vars(plan), target=base.target.name, exact=True)
        return
    for budget in budgets_of(config):
        own = candidates_of(base, (), recipe_of(config), budget)
        types, _ = best_allocation(base, _guessed(base, own), own, budget)
        plan = planned_file(base, config, types, None, budget.bits)
        yield BasePlan(**vars(plan), target=base.target.name, exact=False)


def _guessed(base: BaseFormat, candidates: Mapping[str, Sequence[str]]) -> Nats:
    """Return what each type is thought to cost each matrix, in a unit of its own."""

    def bits(qtype: str) -> float:
        return qtypes.get(qtype).bits if takes_rounding(qtype) else PLAIN_BITS

    return {
        name: {qtype: base.matrices[name].weights * 4.0 ** -bits(qtype) for qtype in own}
        for name, own in candidates.items()
    }
