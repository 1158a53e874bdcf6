"""Recipes for matrices that go by the names of mlx-lm's modules."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bitquilt.allocation.recipe import QtypeChoice, Recipe, require_fit
from bitquilt.errors import UserError
from bitquilt.streaming.source import SourceMatrix
from bitquilt.targets import MLX


def recipe_types_of(recipe: Recipe, matrices: Mapping[str, SourceMatrix]) -> dict[str, str]:
    """Return the type that a recipe gives each matrix.

    Raises:
        UserError: a rule matches nothing, a pin names no matrix, or a matrix is left without a
            type or gets one that it cannot take.
    """
    found = recipe_pins_of(recipe, matrices)
    for rule in recipe.rules:
        if not any(re.search(rule.match, name) for name in matrices):
            raise UserError(
                f'{recipe.where}: the rule "{rule.match}" matches no matrix; they have names like '
                f"{next(iter(matrices))}"
            )
    for name, matrix in matrices.items():
        matching = (rule.qtype for rule in recipe.rules if re.search(rule.match, name))
        choice = next(matching, recipe.default)
        if name not in found:
            found[name] = _chosen(matrix, choice, recipe.where)
    return {name: found[name] for name in matrices}


def recipe_pins_of(recipe: Recipe, matrices: Mapping[str, SourceMatrix]) -> dict[str, str]:
    """Return the types of those that it pins.

    Raises:
        UserError: a pin names no matrix, or its type is one that the rows cannot take.
    """
    found = {}
    for pin, choice in recipe.pin.items():
        name = pin.removesuffix(".weight")
        if name not in matrices:
            raise UserError(
                f'{recipe.where} pins "{pin}", which is not a matrix of this model; its matrices '
                f"have names like {next(iter(matrices))}"
            )
        found[name] = _chosen(matrices[name], choice, recipe.where)
    return found


def _chosen(matrix: SourceMatrix, choice: QtypeChoice | None, where: str) -> str:
    name = choice if choice is None or isinstance(choice, str) else choice.get(MLX.name)
    if name is None:
        raise UserError(f"{where} gives {matrix.name} no type for mlx; add one, or a default")
    return require_fit(name, matrix.name, matrix.columns, MLX.name, where)
