"""The names of presets, for what is refused before the libraries are imported that apply them."""

from __future__ import annotations

from pathlib import Path

from bitquilt.allocation.llama_cpp import LLAMA_CPP
from bitquilt.config import PlanConfig
from bitquilt.errors import UserError
from bitquilt.runtime.near import nearest
from bitquilt.targets import TARGETS, get_target, parse_targets

MLX_MIXED = {
    "mixed_2_6": ("2bit-g64", "6bit-g64"),
    "mixed_3_4": ("3bit-g64", "4bit-g64"),
    "mixed_3_6": ("3bit-g64", "6bit-g64"),
    "mixed_4_6": ("4bit-g64", "6bit-g64"),
}
"""Preset → type of most matrices, type of the head and of v_proj and down_proj where
:func:`~.llama_cpp.more_bits` says so."""
_UNIFORM = [f"{bits}bit-g{group}" for bits in (2, 3, 4, 5, 6, 8) for group in (128, 64, 32)]
_NAMES = {"llama.cpp": [*LLAMA_CPP], "mlx-lm": [*_UNIFORM, *MLX_MIXED]}


def preset_names(target: str) -> list[str]:
    """Return the presets of a target by its name, roughly by size."""
    return [*_NAMES[get_target(target).presets]]


def asked_preset(config: PlanConfig) -> str | None:
    """Return the preset that is asked for; None where a recipe's file is, or neither.

    Raises:
        UserError: no format that is asked for has such a preset, or a budget is given with it.
    """
    if config.recipe is None or Path(config.recipe).suffix == ".json":
        return None
    if Path(config.recipe).is_file():
        return None
    preset = _known(str(config.recipe), config.to)
    if config.bits is not None or config.size is not None:
        raise UserError(
            f"preset {preset} decides the size itself; leave out the preset, or --bits and --size"
        )
    return preset


def _known(name: str, to: str) -> str:
    """Return the name of a preset, which at least one of the formats ``to`` has."""
    known = {target: preset_names(target) for target in TARGETS}
    asked = [preset for target in parse_targets(to) for preset in known[target.name]]
    if name in asked:
        return name
    others = [preset for own in known.values() for preset in own]
    meant = next(iter(nearest(name, asked) or nearest(name, others)), name)
    having = next((target for target, own in known.items() if meant in own), None)
    if meant in asked or having is None:
        hint = f"did you mean {meant}? The" if meant in asked else "the"
        raise UserError(
            f"{name} is neither a recipe file (.json) nor a preset; {hint} presets are "
            f"{', '.join(asked)}"
        )
    it_is = f"{name} is" if meant == name else f"there is no preset {name}; {meant} is"
    raise UserError(
        f"{it_is} a preset of {having.upper()}, not of {to.upper()}; use --to={having}, or choose "
        f"one of {', '.join(asked)}"
    )
