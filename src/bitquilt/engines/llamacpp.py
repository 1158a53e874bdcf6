"""llama.cpp, in a child process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitquilt.engines.remote import RemoteEngine
from bitquilt.engines.weights import require_draft_weights, require_finite_weights
from bitquilt.runtime.compute import asked_threads

VISION_PREFIX = "mmproj"
"""What names of files with a vision tower begin with."""


def open_llamacpp(
    path: Path, *, exact: bool = False, threads: int | None = None, draft: Path | None = None
) -> RemoteEngine:
    """Load a GGUF file in llama.cpp.

    Args:
        path: the file.
        exact: float32 KV cache and no flash attention, to compare with another engine.
        threads: if not given, as many as were asked for, or one per physical core.
        draft: the file of a smaller model that writes ahead for it.

    Raises:
        EngineMissingError: xllamacpp is missing, of another version, or without the C API.
        UserError: llama.cpp refuses a file or crashes on it, or its weights are NaN or infinite;
            or the draft model is no smaller, or its tokens are others.
    """
    require_finite_weights(path)
    options: dict[str, Any] = {"path": str(path), "exact": exact}
    if draft is not None:
        require_draft_weights(draft, path)
        options["draft"] = str(draft)
    if (beside := vision_beside(path)) is not None:
        options["vision"] = str(beside)
    return RemoteEngine("llama.cpp", {**options, "threads": threads or asked_threads()})


def vision_beside(path: Path) -> Path | None:
    """Find the file of a model's vision tower, as :func:`named_vision` does.

    One that is alone in the directory counts under any name, as people keep a model's files.
    """
    found = _visions(path)
    return named_vision(path) or (found[0] if len(found) == 1 else None)


def named_vision(path: Path) -> Path | None:
    """Find the file of a model's vision tower: ``mmproj-NAME.gguf`` beside ``NAME-….gguf``."""
    own = [
        file
        for file in _visions(path)
        if path.name.startswith(file.stem.removeprefix(f"{VISION_PREFIX}-"))
    ]
    return max(own, key=lambda file: len(file.stem), default=None)


def _visions(path: Path) -> list[Path]:
    """List all vision towers beside a model's file; beside one of themselves there is none."""
    if path.name.startswith(VISION_PREFIX):
        return []
    return sorted(path.parent.glob(f"{VISION_PREFIX}*.gguf"))


def open_vocabulary(path: Path) -> RemoteEngine:
    """Load the header of a GGUF file in llama.cpp, which then knows tokens and nothing else.

    Raises:
        EngineMissingError: as :func:`open_llamacpp`.
        UserError: llama.cpp refuses the header or crashes on it.
    """
    options = {"path": str(path), "exact": False, "threads": 1, "vocabulary_only": True}
    return RemoteEngine("llama.cpp", options)
