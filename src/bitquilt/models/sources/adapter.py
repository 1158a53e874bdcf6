"""Adapters: weights that change another model's, alone in a directory or beside whole ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bitquilt.errors import UserError
from bitquilt.models.checkpoint import ADAPTER_CONFIG, Finding

_BESIDE = ("adapter_model", "consolidated")
"""What the names of files begin with that lie beside a model's weights: an adapter's, and those of
Mistral's own format, which has the same weights once more."""
_MERGE = "put it into that model with peft's merge_and_unload() and save the result"


def is_adapter(names: Iterable[str]) -> bool:
    """Tell whether tensors of these names are an adapter's, and no model's."""
    return any(".lora_A." in name or ".lora_B." in name for name in names)


def adapter_error(directory: Path) -> UserError:
    """Say what to do with an adapter."""
    return UserError(
        f"{directory} has the weights of a LoRA adapter, which changes another model; {_MERGE}"
    )


def whole_weights(files: list[Path]) -> list[Path]:
    """Leave out an adapter's files and copies in another format, unless there are no others."""
    return [file for file in files if not file.name.startswith(_BESIDE)] or files


def has_adapter(directory: Path) -> bool:
    """Tell whether an adapter lies beside a model's weights."""
    return (directory / ADAPTER_CONFIG).exists()


def about_adapter(directory: Path) -> list[Finding]:
    """Say of an adapter beside whole weights that it is left out.

    transformers puts it on them where peft is installed, and else leaves it out, too.
    """
    if not has_adapter(directory):
        return []
    said = (
        f"{ADAPTER_CONFIG} lies beside whole weights, and its adapter is left out: files are made "
        "of the weights alone, while transformers with peft puts the adapter on them. If it is not "
        f"in the weights already, and should be, {_MERGE}."
    )
    return [Finding(ADAPTER_CONFIG, said)]
