"""mlx-lm, in a child process."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bitquilt.engines.remote import RemoteEngine
from bitquilt.engines.weights import require_finite_weights
from bitquilt.errors import EngineMissingError


def open_mlx(directory: Path) -> RemoteEngine:
    """Load an MLX directory in mlx-lm.

    Raises:
        EngineMissingError: mlx-lm is not installed.
        UserError: it refuses the directory or crashes on it, or its weights are NaN or infinite.
    """
    if importlib.util.find_spec("mlx_lm") is None:
        raise EngineMissingError(
            f"{directory} runs in mlx-lm, which is not installed; pip install 'bitquilt[mlx]'"
        )
    require_finite_weights(directory)
    return RemoteEngine("mlx-lm", {"path": str(directory)})
