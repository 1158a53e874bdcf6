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


def open_engine(model: str | Path) -> Engine:
    """Load a model: a GGUF file in llama.cpp, an MLX directory in mlx-lm, all else in PyTorch.

    Args:
        model: a .gguf file, an MLX directory, a Hugging Face directory, a hub id, or ``demo``.

    Raises:
        UserError: the model cannot be found or loaded, or its engine is not installed.
    """
    path = Path(model)
    if path.suffix == SUFFIX and path.is_file():
        from bitquilt.engines.llamacpp import open_llamacpp

        return open_llamacpp(path)
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
