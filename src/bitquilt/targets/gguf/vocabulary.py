"""llama.cpp's tokenizer of a file that is not there yet."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitquilt.engines.llamacpp import open_vocabulary
from bitquilt.errors import UserError
from bitquilt.targets.base import Tokenize


@contextmanager
def llama_cpp_tokenizer(header: bytes, name: str) -> Iterator[Tokenize]:
    """Let llama.cpp read a GGUF header, in a process of its own, and tokenize while entered.

    Args:
        header: of a file, with its metadata.
        name: what errors call it.

    Raises:
        EngineMissingError: llama.cpp is not installed.
        UserError: llama.cpp refuses the header.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "vocabulary.gguf"
        path.write_bytes(header)
        try:
            engine = open_vocabulary(path)
        except UserError as error:  # nobody has seen the file that it names
            said = error.sentence.replace(str(path), f"the tokenizer of {name}")
            raise type(error)(said) from error
        with engine:
            yield lambda text, add_special: engine.tokenize(text, add_special=add_special)
