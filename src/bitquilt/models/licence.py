"""The licence of a model: the files that state it, and what the front matter of its card says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitquilt.errors import UserError

LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")
"""Files beside a model that say on what terms it is passed on."""


def card_metadata(directory: Path) -> dict[str, Any]:
    """Read the front matter of the directory's README.md; empty where there is none.

    Raises:
        UserError: the front matter is not YAML that the hub would take.
    """
    from huggingface_hub import ModelCard

    card = directory / "README.md"
    if not card.is_file():
        return {}
    try:
        found: dict[str, Any] = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # huggingface_hub and its YAML have no common class
        reason = " ".join(str(error).split())
        raise UserError(
            f"the front matter of {card} cannot be read ({reason}), and it has the licence; mend it"
        ) from error
    return found


def licence(directory: Path) -> str | None:
    """Give the ``license`` field as the hub writes it, e.g. ``apache-2.0``; None if there is none.

    A front matter that cannot be read says nothing here; who passes the model on is told.
    """
    try:
        stated = card_metadata(directory).get("license")
    except UserError:
        return None
    return stated if isinstance(stated, str) else None
