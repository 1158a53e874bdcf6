"""The generation_config.json of a model: how its authors would sample, and where turns end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitquilt.errors import UserError
from bitquilt.models.config_fields import MOST, is_number, refuse_odd_tokens
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
    if found.get("top_k") == -1:  # as some say that all tokens are kept
        found["top_k"] = 0
    for field in _SAMPLING:
        value = found.get(field)
        kept = value is None or (is_number(value) and 0 <= value <= MOST["vocab_size"])
        if not kept or (field == "top_k" and isinstance(value, float)):
            raise UserError(
                f"{field} is {value!r:.60} in {path}, and should be a number from 0; compare it "
                "with the one on the model's page, or leave it out"
            )
    return found
