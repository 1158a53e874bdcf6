"""A tokenizer.json, read by tokenizers and tried."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bitquilt.errors import UserError

_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]')
"""Hardly any file has one, and large ones take a second to parse."""


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, or refuse one that could not encode a text.

    Raises:
        UserError: it is damaged, or adds a token that it does not have.
    """
    refuse_unsound(path)
    try:
        loaded = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower class
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a tokenizer ({reason}); download it again") from error
    refuse_unknown_texts(loaded, path)
    return loaded


def refuse_unsound(path: Path) -> None:
    """Refuse a tokenizer.json that would end the process while tokenizers reads it.

    It takes as many bytes from the second half of each merge as the prefix of continuing pieces
    has letters, whatever they are, and cannot tell of text that is cut within a letter.

    Raises:
        UserError: a merge goes on with something else than the prefix.
    """
    try:
        raw = path.read_bytes()
        model = json.loads(raw)["model"] if _PREFIX.search(raw) else {}
        prefix, merges = model["continuing_subword_prefix"], model["merges"]
        seconds = [one.split(" ")[-1] if isinstance(one, str) else one[-1] for one in merges]
        sound = prefix.isascii() and all(second.startswith(prefix) for second in seconds)
    except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
        return  # no BPE, or damaged in a way that tokenizers tells of
    if not sound:
        raise UserError(
            f"{path} is not a tokenizer (its continuing_subword_prefix {prefix!r} is not what its "
            "merges go on with); download it again"
        )


def refuse_unknown_texts(loaded: Tokenizer, path: Path) -> None:
    """Refuse a tokenizer that adds a token which it does not have.

    Raises:
        UserError: naming the token.
    """
    processor = loaded.post_processor
    for step in _steps(json.loads(processor.__getstate__()) if processor else {}):
        known = step.get("special_tokens", {})
        for piece in (*step["single"], *step["pair"]):
            name = piece.get("SpecialToken", {}).get("id")
            if name is not None and name not in known:  # tokenizers would end the process
                raise UserError(
                    f"{path} puts {name!r} around texts, and its post_processor does not say "
                    "which token that is; download it again"
                )


def _steps(processor: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The templates of a post-processor."""
    if processor.get("type") == "Sequence":
        for one in processor["processors"]:
            yield from _steps(one)
    elif processor.get("type") == "TemplateProcessing":
        yield processor
