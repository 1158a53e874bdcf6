"""mlx-lm, in a child process."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from bitquilt.engines.remote import RemoteEngine
from bitquilt.errors import UserError


def open_mlx(directory: Path) -> RemoteEngine:
    """Load an MLX directory in mlx-lm.

    Raises:
        UserError: mlx-lm is not installed, refuses the directory, or crashes on it.
    """
    if importlib.util.find_spec("mlx_lm") is None:
        needed = "mlx-lm" if sys.platform == "darwin" else "mlx-lm 'mlx[cpu]'"
        raise UserError(f"{directory} runs in mlx-lm, which is not installed; pip install {needed}")
    return RemoteEngine("mlx", {"path": str(directory)})
