"""The tokenizer of a Hugging Face directory, as tokenizer.json has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bitquilt.errors import UserError
from bitquilt.gguf.tokenizer.tokenizer_json import read_tokenizer

_REASON_LENGTH = 300


def load_tokenizer(directory: Path) -> Any:
    """Load a tokenizer that gives the tokens of tokenizer.json, and of a GGUF file made of it.

    The class that tokenizer_config.json names may build a splitting of its own instead: Llama's has
    another idea of the first space. A tokenizer without tokenizer.json is what its class makes.

    Raises:
        UserError: transformers cannot load it.
    """
    whole = (directory / "tokenizer.json").exists()
    if whole:
        read_tokenizer(directory / "tokenizer.json")
    try:
        loaded = (PreTrainedTokenizerFast if whole else AutoTokenizer).from_pretrained(directory)
        loaded.decode(loaded.encode("a"))  # some settings are looked at only then
        return loaded
    except Exception as error:  # tokenizers raises no narrower class
        reason = " ".join(str(error).split())[:_REASON_LENGTH] or type(error).__name__
        raise UserError(
            f"{directory} holds no tokenizer that transformers can load ({reason}); download its "
            "tokenizer.json and tokenizer_config.json again"
        ) from error
