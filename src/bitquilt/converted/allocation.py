"""Which type each matrix of a base gets: by a budget, by a preset, or by a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bitquilt.allocation.budget import Budget, budgets_of, label_of
from bitquilt.allocation.candidates import candidate_sets
from bitquilt.allocation.knapsack import best_choices
from bitquilt.allocation.preset_names import asked_preset
from bitquilt.allocation.recipe import Recipe, read_recipe
from bitquilt.config import QuantizeConfig
from bitquilt.converted.formats.base_format import BaseFormat
from bitquilt.converted.prediction import Nats
from bitquilt.errors import UserError
from bitquilt.qtypes.qtype import Allocation
from bitquilt.streaming.quantize_gguf import GgufPlan
from bitquilt.targets.layout import Layout

WIDER_BITS = 1.0
"""Types that a file of so many bits a weight less could have are tried, too: some matrices bear
them (docs/decisions/bases.md)."""
FLOATS = ("BF16", "F32", "F16")
"""The types that a base may have, of which a matrix may keep only its own."""


@dataclass(frozen=True)
class BaseShapes:
    """The matrices of a base, as :func:`bitquilt.allocation.candidates.candidate_sets` has them."""

    matrices: Mapping[str, tuple[int, int]]
    levels: Mapping[str, str] = field(default_factory=dict)


def asked_types(base: BaseFormat, config: QuantizeConfig) -> dict[str, str] | None:
    """Return the types that a preset or a recipe gives all matrices; None where a budget decides.

    Raises:
        UserError: it does not fit the model.
    """
    recipe, budgets = recipe_of(config), budgets_of(config)
    if budgets or config.recipe is None:
        return None
    return base.preset(str(config.recipe)) if recipe is None else base.of_recipe(recipe)


def recipe_of(config: QuantizeConfig) -> Recipe | None:
    """Read the recipe that is asked for; None where it is a preset, or none.

    Raises:
        UserError: it cannot be read, asks for a correction, or there is no such preset.
    """
    if config.recipe is None or asked_preset(config) is not None:
        return None
    recipe = read_recipe(Path(config.recipe))
    recipe.refuse_correction()
    return recipe


def candidates_of(
    base: BaseFormat, unknown: Iterable[str], recipe: Recipe | None, budget: Budget
) -> dict[str, list[str]]:
    """Return the types that each matrix may have for a budget.

    Args:
        base: has the matrices.
        unknown: those of which nothing is known, which stay on a safe type.
        recipe: its pins are kept to.
        budget: what is asked for.

    Raises:
        UserError: the budget is below the smallest file or above the largest.
    """
    pins = {**{name: base.safe_type(name) for name in unknown}, **base.pins}
    pins |= {} if recipe is None else base.pinned(recipe)
    shapes = BaseShapes(
        {name: (one.experts * one.rows, one.columns) for name, one in base.matrices.items()}
    )
    names: dict[str, list[str]] = {}
    for one in (budget, _smaller(budget, base.weights)):
        try:
            sets = candidate_sets(shapes, base.target, pins, base.nbytes, layout_of(base), one)
        except UserError:
            if one is budget:
                raise
            continue
        for name, own in sets.items():
            names[name] = [*names.get(name, []), *(candidate.qtype for candidate in own)]
    return {
        name: own[:1] if name in pins else fitting_types(base, name, dict.fromkeys(own))
        for name, own in names.items()
    }


def _smaller(budget: Budget, weights: int) -> Budget:
    """A budget of fewer bits: its types are candidates, too, as a prediction costs little here."""
    if budget.size is not None:
        return Budget(size=budget.size - int(WIDER_BITS * weights / 8))
    assert budget.bits is not None
    return Budget(bits=budget.bits - WIDER_BITS)


def layout_of(base: BaseFormat) -> Layout:
    """Return what a file has beside its matrices, in the form that budgets are counted in."""
    return Layout(base.fixed_bytes, {}, base.fixed_bytes, {"norms": base.kept_bytes}, base.weights)


def fitting_types(base: BaseFormat, name: str, types: Iterable[str]) -> list[str]:
    """Return those of some types that are smaller than the matrix is in the base, or what it is."""
    own = base.stored[name]
    most = base.nbytes(name, own)
    fitting = [
        qtype
        for qtype in types
        if qtype == own or (qtype not in FLOATS and base.nbytes(name, qtype) < most)
    ]
    return fitting or [own]


def best_allocation(
    base: BaseFormat, nats: Nats, candidates: Mapping[str, Sequence[str]], budget: Budget
) -> tuple[dict[str, str], float]:
    """Return the types of least predicted cost within a budget, and that cost."""
    names = list(candidates)
    sizes = [[base.nbytes(name, qtype) for qtype in candidates[name]] for name in names]
    costs = [np.array([nats[name][qtype] for qtype in candidates[name]]) for name in names]
    chosen = best_choices(costs, sizes, budget.capacity(layout_of(base)))
    types = {name: candidates[name][i] for name, i in zip(names, chosen, strict=True)}
    return types, sum(nats[name][qtype] for name, qtype in types.items())


def bits_of_types(base: BaseFormat, types: Allocation) -> float:
    """Return the bits per weight of the tensors; alignment between them counts as data."""
    data = base.kept_bytes + sum(base.nbytes(name, qtype) for name, qtype in types.items())
    return 8 * data / base.weights


def planned_file(
    base: BaseFormat,
    config: QuantizeConfig,
    types: Allocation,
    predicted: float | None,
    bits: float | None,
) -> GgufPlan:
    """Return the plan of a file.

    Args:
        base: of the model.
        config: what was asked for.
        types: of every matrix.
        predicted: what they are predicted to cost, nats per token.
        bits: those that were asked for, if it was by bits.
    """
    return GgufPlan(
        label=label_of(bits, config.size, config.recipe),
        nbytes=base.total_bytes(types),
        bits=bits_of_types(base, types),
        types=types,
        predicted_kl=predicted,
        kept=base.kept,
        without_importance=[name for name in base.matrices if name not in base.known],
    )
