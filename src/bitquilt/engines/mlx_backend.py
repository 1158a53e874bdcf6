"""mlx-lm as a backend, through its public calls: load_model, the model itself, its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from bitquilt.engines.tokenizer import HubTokenizer
from bitquilt.errors import UserError
from bitquilt.files import read_json

CHUNK = 512


def load(path: str) -> Mlx:
    """Load an MLX directory.

    Raises:
        UserError: mlx-lm refuses it.
    """
    return Mlx(Path(path))


class Mlx(HubTokenizer):
    """One model and at most one cache."""

    def __init__(self, directory: Path) -> None:
        generation = directory / "generation_config.json"
        super().__init__(
            directory,
            read_json(directory / "config.json"),
            read_json(generation) if generation.exists() else {},
        )
        try:
            self._model, _ = load_model(directory)
        except (ValueError, FileNotFoundError, RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"mlx-lm cannot load {directory}: {reason}; check it with bitquilt inspect"
            ) from error
        if mx.default_device() == mx.Device(mx.cpu):
            # the same weights; mlx's bf16 arithmetic on a CPU takes ten times as long
            self._model.set_dtype(mx.float32)
        self._cache: list[Any] = []

    def window(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        self.begin(len(tokens))
        return np.concatenate([_rows(logits) for logits in self._run(tokens)])

    def begin(self, capacity: int) -> None:
        """See :class:`~bitquilt.engines.backend.Backend`; the cache grows by itself."""
        self._cache = make_prompt_cache(self._model)

    def feed(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        last = [logits[-1:] for logits in self._run(tokens)][-1]
        row: npt.NDArray[np.float32] = _rows(last)[0]
        return row

    def _run(self, tokens: Sequence[int]) -> list[mx.array]:
        """Logits of each chunk, [length, V], left for mlx to compute when they are read."""
        chunks = [tokens[start : start + CHUNK] for start in range(0, len(tokens), CHUNK)]
        return [self._model(mx.array([chunk]), cache=self._cache)[0] for chunk in chunks]


def _rows(logits: mx.array) -> npt.NDArray[np.float32]:
    return np.array(logits.astype(mx.float32))
