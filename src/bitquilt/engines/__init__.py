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
        draft: a smaller model that writes ahead for it, in the same format: a .gguf file, or an
            MLX directory.

    Raises:
        UserError: the model cannot be found or loaded, or its engine is not installed; or the
            draft model is none for it.
    """
    path, ahead = Path(model), None if draft is None else Path(draft)
    if ahead is not None:
        require_draft_format(path, ahead)
    if is_gguf(path):
        from bitquilt.engines.llamacpp import open_llamacpp

        return open_llamacpp(path, draft=ahead)
    if is_mlx(path):
        from bitquilt.engines.mlx import open_mlx

        return open_mlx(path, draft=ahead)
    from bitquilt.engines.torch import TorchEngine
    from bitquilt.models import open_checkpoint

    return TorchEngine(open_checkpoint(model))


def require_draft_format(model: Path, draft: Path) -> None:
    """Refuse a draft model that runs in another engine than its model, or one for PyTorch.

    Raises:
        UserError: the sentence names both.
    """
    kinds = {"a GGUF file": is_gguf, "an MLX directory": is_mlx}
    for kind, holds in kinds.items():
        if holds(model):
            if not holds(draft):
                raise UserError(
                    f"{draft} cannot be the draft model of {model}, as it is not {kind}, too; make "
                    "one with `bitquilt quantize SMALL --bits 4.5 --to both`"
                )
            return
    raise UserError(
        f"{model} runs in PyTorch, where no model drafts for another; make a file of it with "
        f"`bitquilt quantize {model} --bits 4.5`, or leave the draft model out"
    )


def is_gguf(path: Path) -> bool:
    """Tell whether a path is that of a GGUF file, by its name."""
    return path.suffix == SUFFIX and path.is_file()


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
