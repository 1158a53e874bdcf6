"""Tokenizers in GGUF, both ways.

Reading takes a GGUF header and gives a Hugging Face tokenizer's directory in the user's cache.
Writing takes such a directory and gives the ``tokenizer.ggml`` keys of a header.

A file stores vocabulary, merges and the *name* of a pre-tokenizer, which
:mod:`bitquilt.gguf.tokenizer.conventions` explains. :func:`tokenizer_directory` rebuilds a Hugging
Face tokenizer from these, and :func:`tokenizer_keys` writes one as these.
"""

from __future__ import annotations

from bitquilt.gguf.tokenizer.conventions import NORMALIZER, SPLITTINGS, is_composed
from bitquilt.gguf.tokenizer.read import (
    adds_bos,
    byte_level_tokenizer,
    end_tokens,
    named_templates,
    start_token,
    tokenizer_directory,
)
from bitquilt.gguf.tokenizer.write import normalizer_keys, tokenizer_keys

__all__ = [
    "NORMALIZER",
    "SPLITTINGS",
    "adds_bos",
    "byte_level_tokenizer",
    "end_tokens",
    "is_composed",
    "named_templates",
    "normalizer_keys",
    "start_token",
    "tokenizer_directory",
    "tokenizer_keys",
]
