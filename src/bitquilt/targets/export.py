"""From an allocation to a model file in its place: written beside it, checked, then renamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bitquilt.errors import UserError
from bitquilt.metrics.kl import TokenFigures
from bitquilt.metrics.teacher import ClosingTeacher, HeldOutFigures, Teacher, weights_metrics
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Allocation, PackedSource
from bitquilt.runtime.files import atomic_write
from bitquilt.runtime.progress import Progress
from bitquilt.targets.base import Target
from bitquilt.targets.engine_check import EngineExcerpt

CHECKING = 1.3
"""What checking a file takes, its bytes read back too, in passes over the text alone."""
RunInEngine = Callable[
    [Path, Target, Checkpoint, Teacher, TokenFigures], tuple[EngineExcerpt | None, str]
]
"""What :func:`bitquilt.targets.engine_check.run_in_engine` is."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What is known of a model file that was written."""

    figures: HeldOutFigures
    """Measured by torch on the weights read back from the file."""
    engine: EngineExcerpt | None
    """The file in its engine and in torch on the same tokens; None where it was not run."""
    note: str
    """What the check in the engine found, or why there was none."""


def export(
    target: Target,
    checkpoint: Checkpoint,
    allocation: Allocation,
    packed: PackedSource,
    path: Path,
    *,
    recipe_json: str,
    total_bytes: int,
    closing: ClosingTeacher,
    engine_check: RunInEngine | None,
    progress: Progress,
) -> Exported:
    """Write a model file, read it back, measure it in torch and in its engine, put it in place.

    Everything is checked while the file has a temporary name. Where a check fails, or the run is
    stopped, an earlier file at ``path`` and its recipe stay, and nothing else is left.

    Args:
        target: the output format.
        checkpoint: gives everything that is not a matrix.
        allocation: matrix → type.
        packed: the rounded matrices.
        path: where the file or directory goes.
        recipe_json: stored in the file, and beside it where the format has no place for people.
        total_bytes: the exact size of the result; padding makes up for a smaller allocation.
        closing: the original on held-out text.
        engine_check: runs the file in its engine; None: it is not run.
        progress: told how it goes.

    Raises:
        UserError: the file cannot be written, or a check failed.
    """
    target.refuse_overwrite(path, checkpoint)
    teacher = closing.teacher
    with atomic_write(path) as beside:
        try:
            with progress.stage(f"Writing {path}", 1, "writing"):
                padding = total_bytes - target.plan(checkpoint, allocation).total_bytes
                target.write_new(checkpoint, allocation, packed, beside, recipe_json, padding)
                progress.advance()
            tokens, head = teacher.tokens.numel(), teacher.head.numel()
            reading = (checkpoint.weights_per_token + head) * tokens
            with progress.stage(f"Checking {path}", CHECKING * reading, "checking"):
                target.check(beside, checkpoint, allocation, packed)
                progress.advance((CHECKING - 1) * reading)
                weights = target.read_weights(beside).__getitem__
                found = weights_metrics(teacher, checkpoint, weights, str(path), progress.advance)
            engine, note = None, "not run: no check was asked for"
            if engine_check is not None:
                with progress.stage(f"Running {path} in {target.engine}", 1, "engine"):
                    engine, note = engine_check(beside, target, checkpoint, teacher, found)
                    progress.advance()
            note = note.replace(str(beside), str(path))
        except UserError as error:  # people know the file by its own name
            raise type(error)(str(error).replace(str(beside), str(path))) from error
    recipe = target.recipe_path(path)
    if not recipe.is_relative_to(path):
        write_recipe(recipe, recipe_json)
    return Exported(figures=closing.figures(found, "torch"), engine=engine, note=note)


def write_recipe(path: Path, recipe_json: str) -> None:
    """Write a recipe for people to read, indented."""
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(json.loads(recipe_json), indent=2) + "\n", "utf-8")
