"""The generation_config.json of a model: how its authors would sample, and where turns end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitquilt.errors import UserError
from bitquilt.models.config_fields import is_number, refuse_odd_tokens
from bitquilt.runtime.files import read_json

GENERATION_FILE = "generation_config.json"
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def read_generation(directory: Path) -> dict[str, Any]:
    """Read a directory's generation_config.json; empty where there is none.

    Raises:
        UserError: it cannot be read, or a field that is used is of another kind than it must be.
    """
    path = directory / GENERATION_FILE
    if not path.exists():
        return {}
    found = read_json(path)
    refuse_odd_tokens(found, GENERATION_FILE)
    for field in _SAMPLING:
        if found.get(field) is not None and not is_number(found[field]):
            raise UserError(
                f"{field} is {found[field]!r:.60} in {path}, and should be a number; compare it "
                "with the one on the model's page, or leave it out"
            )
    return found
