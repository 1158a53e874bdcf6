"""Drawing the next token, the same for every engine.

Order of the filters, as in llama.cpp: repetition penalty, top-k, top-p, min-p, temperature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitquilt.engines.engine import Sampling

FIRST_CANDIDATES = 256

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.intp]


class Sampler:
    """Draws tokens from logits; the same seed and logits give the same tokens."""

    def __init__(self, settings: Sampling, seen: Sequence[int]) -> None:
        """``seen`` are the prompt's tokens, which the repetition penalty counts too."""
        self._settings = settings
        self._random = np.random.default_rng(settings.seed)
        self._seen = set(seen)

    def draw(self, logits: Floats) -> int:
        """The next token for float32 [V] logits."""
        token = self._pick(self._penalized(logits))
        self._seen.add(token)
        return token

    def _penalized(self, logits: Floats) -> Floats:
        penalty = self._settings.repetition_penalty
        if penalty == 1.0 or not self._seen:
            return logits
        logits = logits.copy()
        seen = np.fromiter(self._seen, dtype=np.intp)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        return logits

    def _pick(self, logits: Floats) -> int:
        settings = self._settings
        if settings.temperature <= 0:
            return int(logits.argmax())
        ids = _likeliest(logits, settings.top_k or len(logits), settings.top_p)
        kept = logits[ids].astype(np.float64)
        if settings.min_p > 0:
            # ids are sorted: the likeliest is first
            enough = kept >= kept[0] + np.log(settings.min_p)
            ids, kept = ids[enough], kept[enough]
        weights = np.exp((kept - kept[0]) / settings.temperature)
        return int(self._random.choice(ids, p=weights / weights.sum()))


def _likeliest(logits: Floats, top_k: int, top_p: float) -> Ids:
    """The ids that top-k and top-p keep, likeliest first.

    Only as many candidates are sorted as top-p turns out to need: sorting a vocabulary of 128k
    for every token would take longer than a small model does.
    """
    top_k = min(top_k, len(logits))
    if top_p >= 1.0 and top_k == len(logits):
        return np.argsort(-logits, kind="stable")
    total = 0.0
    size = min(FIRST_CANDIDATES, top_k) if top_p < 1.0 else top_k
    while True:
        ids = np.argpartition(-logits, size - 1)[:size] if size < len(logits) else np.arange(size)
        ids = ids[np.lexsort((ids, -logits[ids]))]
        exponentials = np.exp(logits[ids].astype(np.float64) - logits[ids[0]])
        if top_p >= 1.0:
            return ids
        if total == 0.0:
            total = _mass(logits, top_k)
        reached = np.searchsorted(np.cumsum(exponentials), top_p * total) + 1
        if reached <= size or size == top_k:
            return ids[:reached]
        size = min(8 * size, top_k)


def _mass(logits: Floats, top_k: int) -> float:
    """Sum of exponentials of the top-k logits, relative to the largest."""
    if top_k < len(logits):
        logits = np.partition(logits, -top_k)[-top_k:]
    return float(np.exp(logits.astype(np.float64) - logits.max()).sum())
