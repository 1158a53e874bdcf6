"""The process of the converter, apart from our packages: run by path, it imports nothing of them.

    python converter_child.py SCRIPT SPLITTING ARGUMENTS…

The converter knows how a tokenizer splits text by a hash of what it makes of one text, and refuses
tokenizers whose hash it does not know, such as those with a vocabulary of their own. SPLITTING is
the name that bitquilt found in the tokenizer's own rules; it is used for such tokenizers.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def run_converter(script: str, splitting: str, arguments: list[str]) -> None:
    """Import the converter from where it is, and call it."""
    directory, name = os.path.split(os.path.abspath(script))
    # Python put this file's directory first: packages there are not the converter's
    sys.path[0] = directory
    converter: Any = importlib.import_module(name.removesuffix(".py"))
    _refuse_code_of_models()
    if splitting:
        _teach(_text_model(converter), splitting)
    sys.argv = [script, *arguments]
    converter.main()


def _refuse_code_of_models() -> None:
    """Load tokenizers without the code that a model's directory may bring and converters allow."""
    auto: Any = importlib.import_module("transformers").AutoTokenizer
    load = auto.from_pretrained

    def from_pretrained(*args: Any, **options: Any) -> Any:
        return load(*args, **{**options, "trust_remote_code": False})

    auto.from_pretrained = from_pretrained


def _text_model(converter: Any) -> Any:
    """The class of the converter that knows hashes; older converters are one file."""
    own = getattr(converter, "TextModel", None)
    return own or importlib.import_module("conversion.base").TextModel


def _teach(text_model: Any, splitting: str) -> None:
    known = text_model.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            return splitting

    text_model.get_vocab_base_pre = get_vocab_base_pre


if __name__ == "__main__":
    run_converter(sys.argv[1], sys.argv[2], sys.argv[3:])
