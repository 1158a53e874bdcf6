"""Weights that no engine can work with are refused before one is started on them."""

from __future__ import annotations

from pathlib import Path

from bitquilt.errors import UserError
from bitquilt.gguf.header import part_paths


def require_finite_weights(path: Path) -> None:
    """Refuse a GGUF file with all its parts, or an MLX directory, with NaN or infinite numbers.

    Of packed tensors only the scales are read, which takes as long as reading the file. A file
    that cannot be read here is left to its engine.

    Raises:
        UserError: the sentence names the file and the tensor, or the part that is missing.
    """
    if path.is_dir():
        from bitquilt.models.sources.safetensors import broken_tensor_in

        broken = next(filter(None, map(broken_tensor_in, sorted(path.glob("*.safetensors")))), None)
    else:
        from bitquilt.gguf.finite import broken_tensor

        try:
            broken = next(filter(None, map(broken_tensor, part_paths(path))), None)
        except (ValueError, OSError):
            return
    if broken is not None:
        raise UserError(
            f"{broken} in {path} holds NaN or infinite numbers, with which the model cannot "
            "answer; the file is damaged: download it again, or make it again with `bitquilt "
            "quantize`"
        )


def require_draft_weights(draft: Path, path: Path) -> None:
    """Refuse weights of a draft model that are no smaller than those of its model, or no numbers.

    Args:
        draft: a GGUF file or an MLX directory.
        path: the model's own.

    Raises:
        UserError: the sentence says which of the two it is.
    """
    small, large = _bytes(draft), _bytes(path)
    if small >= large:
        raise UserError(
            f"{draft} has {small:,} bytes, and {path} has {large:,}: only a smaller draft model "
            "makes answers faster; give a smaller model of the same family"
        )
    require_finite_weights(draft)


def _bytes(path: Path) -> int:
    """Count the bytes of a model's weights, in all of its files."""
    files = path.glob("*.safetensors") if path.is_dir() else part_paths(path)
    return sum(file.stat().st_size for file in files)
