"""``<name>.eval.json``: the figures of a file, kept beside it for the report and the card.

It holds an :class:`~bitquilt.evaluation.results.Evaluation` of that file alone, and may be
published with it. Figures belong to bytes: those of other bytes under the same name are not used.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from bitquilt.errors import UserError
from bitquilt.evaluation.results import Evaluation
from bitquilt.runtime.files import atomic_write
from bitquilt.runtime.records import load_record

EVAL_FORMAT = 3
"""The version of the schema; a file of another is refused."""


def save_beside(evaluation: Evaluation) -> None:
    """Put the figures of each file beside it, without those of the others."""
    for one in evaluation.files:
        assert one.path is not None  # it was measured here
        alone = replace(evaluation, files=(replace(one, path=None),), comparisons=())
        content = {"format": EVAL_FORMAT, **alone.to_dict()}
        with atomic_write(path_beside(Path(one.path))) as beside:
            beside.write_text(json.dumps(content, indent=1), encoding="utf-8")


def load_beside(model: Path, digest: str | None = None) -> Evaluation | None:
    """Give what :func:`save_beside` left for a file; None if nothing is there for these bytes.

    Args:
        model: the file.
        digest: its :func:`sha256`, where that is known already.

    Raises:
        UserError: what is there is not JSON, or was written by another version.
    """
    path = path_beside(model)
    if not path.exists():
        return None
    remedy = f"remove it, or run `bitquilt eval {model.name}` again"
    found = load_record(Evaluation, path, EVAL_FORMAT, remedy)
    if len(found.files) != 1 or not found.own or not found.files[0].figures:
        raise UserError(f"{path} does not hold the figures of one file; {remedy}")
    return found if found.files[0].sha256 == (digest or sha256(model)) else None


def path_beside(model: Path) -> Path:
    """Give the place where the figures of a file are kept."""
    return model.with_name(f"{model.name}.eval.json")


def sha256(model: Path) -> str:
    """Hash a GGUF file, or the weights of an MLX directory."""
    with weights_file(model).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_file(model: Path) -> Path:
    """Give the file that has the weights: a GGUF file itself, or the one in an MLX directory."""
    return model / "model.safetensors" if model.is_dir() else model
