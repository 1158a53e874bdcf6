"""mlx-lm, in a child process."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bitquilt.engines.remote import RemoteEngine
from bitquilt.engines.weights import require_draft_weights, require_finite_weights
from bitquilt.errors import EngineMissingError


def open_mlx(directory: Path, *, draft: Path | None = None) -> RemoteEngine:
    """Load an MLX directory in mlx-lm.

    Args:
        directory: the model.
        draft: the directory of a smaller model that writes ahead for it.

    Raises:
        EngineMissingError: mlx-lm is not installed.
        UserError: it refuses the directory or crashes on it, or its weights are NaN or infinite;
            or the draft model is no smaller, or its tokens are others.
    """
    if importlib.util.find_spec("mlx_lm") is None:
        raise EngineMissingError(
            f"{directory} runs in mlx-lm, which is not installed; pip install 'bitquilt[mlx]'"
        )
    require_finite_weights(directory)
    options = {"path": str(directory)}
    if draft is not None:
        require_draft_weights(draft, directory)
        options["draft"] = str(draft)
    return RemoteEngine("mlx-lm", options)
