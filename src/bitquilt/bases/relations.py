"""Which matrices of a base were made from which parameters, told for people."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bitquilt.bases.importance import open_base
from bitquilt.errors import UserError
from bitquilt.models.sources.resolve import resolve
from bitquilt.runtime.progress import Progress

ALONE = "no parameter has its numbers"
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, kw_only=True)
class BaseRelation:
    """Matrices of one kind, whose names differ by the number of a block."""

    matrices: str
    """Their names, with a star for each number."""
    count: int
    parameters: tuple[str, ...]
    """The names of the parameters that their numbers are from, with stars."""
    relation: str
    """How a matrix differs from its parameters; ``equal`` where it does not."""


def base_relations(model: str, path: Path, progress: Progress) -> list[BaseRelation]:
    """Find the parameters of a base's matrices, by their numbers.

    Args:
        model: hub id or Hugging Face directory.
        path: the base, a GGUF file.
        progress: told of a stage.

    Raises:
        UserError: one of them cannot be read, or the base was made of another model.
    """
    directory = resolve(model)
    if not directory.is_dir():
        raise UserError(
            f"{model} is not a Hugging Face directory, whose parameters matrices of {path.name} "
            "could be made from; give the directory that it was converted from"
        )
    counts: dict[tuple[str, tuple[str, ...], str], int] = {}
    for name, partner in open_base(path, directory, progress).partners.items():
        own = () if partner is None else partner.parameters
        kinds = tuple(dict.fromkeys(map(_without_numbers, own)))
        relation = ALONE if partner is None else partner.relation
        key = (_without_numbers(name), kinds, relation)
        counts[key] = counts.get(key, 0) + 1
    return [
        BaseRelation(matrices=name, count=count, parameters=kinds, relation=relation)
        for (name, kinds, relation), count in counts.items()
    ]


def _without_numbers(name: str) -> str:
    return _NUMBER.sub("*", name)
