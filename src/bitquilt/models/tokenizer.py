"""The tokenizer of a Hugging Face directory, as tokenizer.json has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from bitquilt.errors import UserError
from bitquilt.gguf.tokenizer.tokenizer_json import (
    read_tokenizer,
    refuse_unknown_texts,
    refuse_unsound,
)

_REASON_LENGTH = 300
_VOCABULARIES = ("tokenizer.*", "vocab.*", "*.model", "*.tiktoken", "tekken*")
"""Names of files that a tokenizer can be made of."""
_in_use: WeakValueDictionary[tuple[object, ...], Any] = WeakValueDictionary()
"""Those that somebody holds, by directory and what its files were. Gemma's takes seconds to load,
and as much memory as some models."""


def load_tokenizer(directory: Path) -> Any:
    """Load a tokenizer that gives the tokens of tokenizer.json, and of a GGUF file made of it.

    The class that tokenizer_config.json names may build a splitting of its own instead: Llama's has
    another idea of the first space. A tokenizer without tokenizer.json is what its class makes.

    Returns:
        The one that is in use already, if there is one of these files: do not change it.

    Raises:
        UserError: transformers cannot load it.
    """
    files = sorted(file for file in directory.glob("*.json*") if file.is_file())
    states = [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    key = (directory.resolve(), *states)
    loaded = _in_use.get(key)
    if loaded is None:
        loaded = _in_use[key] = _load(directory)
    return loaded


def require_vocabulary(directory: Path) -> None:
    """Refuse a directory without any file that a tokenizer can be made of.

    Raises:
        UserError: it is.
    """
    if not any(next(directory.glob(name), None) for name in _VOCABULARIES):
        raise UserError(
            f"{directory} has no tokenizer; put its tokenizer.json and tokenizer_config.json "
            "there, from where the model came from"
        )


def _load(directory: Path) -> Any:
    path = directory / "tokenizer.json"
    whole = path.exists()
    if whole:
        refuse_unsound(path)
    try:
        loaded = (PreTrainedTokenizerFast if whole else AutoTokenizer).from_pretrained(directory)
        if whole:
            refuse_unknown_texts(loaded.backend_tokenizer, path)
        loaded.decode(loaded.encode("a"))  # some settings are looked at only then
        # texts are cut into windows later, so that a long one is nothing to warn of
        loaded.model_max_length = VERY_LARGE_INTEGER
        return loaded
    except UserError:
        raise
    except Exception as error:  # tokenizers raises no narrower class
        if whole:
            read_tokenizer(path)  # says it better, if the damage is there
        require_vocabulary(directory)
        reason = " ".join(str(error).split())[:_REASON_LENGTH] or type(error).__name__
        raise UserError(
            f"{directory} holds no tokenizer that transformers can load ({reason}); download its "
            "tokenizer.json and tokenizer_config.json again"
        ) from error
