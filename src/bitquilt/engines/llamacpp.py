"""llama.cpp, in a child process."""

from __future__ import annotations

from pathlib import Path

from bitquilt.engines.remote import RemoteEngine
from bitquilt.engines.weights import require_finite_weights
from bitquilt.runtime.compute import asked_threads


def open_llamacpp(path: Path, *, exact: bool = False, threads: int | None = None) -> RemoteEngine:
    """Load a GGUF file in llama.cpp.

    Args:
        path: the file.
        exact: float32 KV cache and no flash attention, to compare with another engine.
        threads: if not given, as many as were asked for, or one per physical core.

    Raises:
        EngineMissingError: xllamacpp is missing, of another version, or without the C API.
        UserError: llama.cpp refuses the file or crashes on it, or its weights are NaN or infinite.
    """
    require_finite_weights(path)
    options = {"path": str(path), "exact": exact, "threads": threads or asked_threads()}
    return RemoteEngine("llama.cpp", options)


def open_vocabulary(path: Path) -> RemoteEngine:
    """Load the header of a GGUF file in llama.cpp, which then knows tokens and nothing else.

    Raises:
        EngineMissingError: as :func:`open_llamacpp`.
        UserError: llama.cpp refuses the header or crashes on it.
    """
    options = {"path": str(path), "exact": False, "threads": 1, "vocabulary_only": True}
    return RemoteEngine("llama.cpp", options)
