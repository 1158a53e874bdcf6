"""A model as mlx-lm reads it before it quantizes it."""

from __future__ import annotations

from pathlib import Path

from bitquilt import quantize
from bitquilt.runtime.progress import Silent


def unquantized(model: str, directory: Path) -> Path:
    """Write a model as an MLX directory in float32, and return where it is."""
    directory.mkdir(parents=True, exist_ok=True)
    recipe = directory / "original.json"
    recipe.write_text('{"default": "F32"}')
    made = quantize(
        model,
        recipe=recipe,
        to="mlx",
        output=directory,
        work_dir=directory / "work",
        progress=Silent(),
    )
    return made.outputs[0].path
