"""Tokenize with stock llama.cpp in a child process: an independent reference for tokenizers.

As a script: arguments GGUF path and 0 or 1 for adding special tokens, a JSON list of texts on
stdin, a JSON list of id lists on stdout.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path


def tokenize(gguf: Path, texts: list[str], *, add_special: bool = False) -> list[list[int]]:
    """Token ids of every text, special tokens in the text parsed as such."""
    done = subprocess.run(
        [sys.executable, __file__, str(gguf), str(int(add_special))],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "GGML_NO_BACKTRACE": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        timeout=300,
    )
    ids: list[list[int]] = json.loads(done.stdout)
    return ids


class _ModelParams(ctypes.Structure):
    """``llama_model_params``, opaque: the defaults are passed back as they came."""

    _fields_ = (("bytes", ctypes.c_ubyte * 256),)


def _main(path: str, add_special: bool) -> None:
    import xllamacpp.xllamacpp as extension

    lib = ctypes.CDLL(extension.__file__)
    lib.llama_model_default_params.restype = _ModelParams
    lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _ModelParams]
    lib.llama_model_load_from_file.restype = ctypes.c_void_p
    lib.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
    lib.llama_model_get_vocab.restype = ctypes.c_void_p
    lib.llama_tokenize.argtypes = [
        *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32),
        *(ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool),
    ]
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    vocab = lib.llama_model_get_vocab(model)
    result = []
    for text in json.load(sys.stdin):
        data = text.encode()
        buffer = (ctypes.c_int32 * (len(data) + 16))()
        count = lib.llama_tokenize(vocab, data, len(data), buffer, len(buffer), add_special, True)
        result.append(list(buffer[:count]))
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2] == "1")
