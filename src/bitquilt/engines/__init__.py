"""Engines: a model file in, logits and tokens out, the same way from each of them.

:func:`open_engine` takes the engine that a file is made for: llama.cpp for GGUF, mlx-lm for MLX,
PyTorch for everything else. llama.cpp and mlx-lm run in a process of their own, so that a crash of
theirs is a :class:`~bitquilt.errors.EngineCrashedError` here.

The engine is chosen by what a path is or holds, whoever wrote it. So the files are looked at here,
and :mod:`bitquilt.targets`, which is about files that bitquilt writes, is not asked.
"""

from __future__ import annotations

from pathlib import Path

from bitquilt.engines.engine import (
    Engine,
    GeneratedToken,
    GenerationRequest,
    ModelInfo,
    Sampling,
    Stream,
    TokenScore,
    require_spoken,
    spoken,
)
from bitquilt.errors import UserError
from bitquilt.gguf import SUFFIX
from bitquilt.runtime.files import read_json

__all__ = [
    "Engine",
    "GeneratedToken",
    "GenerationRequest",
    "ModelInfo",
    "Sampling",
    "Stream",
    "TokenScore",
    "open_engine",
    "require_spoken",
    "spoken",
]


MLX_FORMAT = "mlx"
"""What mlx itself writes as the format into the header of a safetensors file."""


def open_engine(model: str | Path, draft: str | Path | None = None) -> Engine:
    """Load a model: a GGUF file in llama.cpp, an MLX directory in mlx-lm, all else in PyTorch.

    Args:
        model: a .gguf file, an MLX directory, a Hugging Face directory, a hub id, or ``demo``.
        draft: the .gguf file of a smaller model that writes ahead for it, in llama.cpp alone.

    Raises:
        UserError: the model cannot be found or loaded, or its engine is not installed; or the
            draft model is none for it.
    """
    path = Path(model)
    if path.suffix == SUFFIX and path.is_file():
        from bitquilt.engines.llamacpp import open_llamacpp

        return open_llamacpp(path, draft=None if draft is None else Path(draft))
    if draft is not None:
        raise UserError(
            f"drafts are read by llama.cpp, and {model} is not a GGUF file; make one with "
            f"`bitquilt quantize {model} --bits 4.5`, or leave the draft model out"
        )
    if is_mlx(path):
        from bitquilt.engines.mlx import open_mlx

        return open_mlx(path)
    from bitquilt.engines.torch import TorchEngine
    from bitquilt.models import open_checkpoint

    return TorchEngine(open_checkpoint(model))


def is_mlx(path: Path) -> bool:
    """Tell whether a directory's weights are for mlx-lm: its config or its weights file says so.

    Raises:
        UserError: either file is damaged.
    """
    config = path / "config.json"
    if not config.is_file():
        return False
    if "quantization" in read_json(config):
        return True
    weights = path / "model.safetensors"
    return weights.is_file() and _format(weights) == MLX_FORMAT


def _format(weights: Path) -> str | None:
    """Read the ``format`` in the header of a safetensors file."""
    from bitquilt.models.sources.safetensors import metadata

    return metadata(weights).get("format")
