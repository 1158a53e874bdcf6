"""A model whose KL is known: a sum over matrices that scores know only roughly, and pairs."""

from __future__ import annotations

import numpy as np

from bitquilt.allocation.space import AllocationSpace, Candidate

BITS = {"g2": 66, "g3": 98, "g4": 136, "g6": 210}
KINDS = {"q_proj": 4, "v_proj": 2, "up_proj": 12, "down_proj": 12}
LAYERS = 5
SEGMENTS = 8


class Synthetic:
    """What a search sees of it is scores and measurements."""

    def __init__(self, seed: int = 0, wrong: float = 0.5, texts: float = 0.1) -> None:
        """``wrong``: how far scores are off, in log; ``texts``: how far each window is."""
        rng = np.random.default_rng(seed)
        self.true, sets = [], {}
        off = {kind: np.exp(rng.normal(0, wrong)) for kind in KINDS}
        for layer in range(LAYERS):
            for kind, units in KINDS.items():
                matter = np.exp(rng.normal(0, 0.7)) * units
                scores = np.array([matter * 4.0 ** (-b / 32) for b in BITS.values()]) * 1e-2
                sizes = [units * b for b in BITS.values()]
                sets[f"model.layers.{layer}.self.{kind}"] = [
                    Candidate(g, n, float(s)) for g, n, s in zip(BITS, sizes, scores, strict=True)
                ]
                self.true.append(scores * off[kind] * np.exp(rng.normal(0, 0.2 * wrong)))
        self.space = AllocationSpace.of(sets)
        smallest, largest = (self.space.nbytes((level,) * len(sets)) for level in (0, 3))
        self.capacity = smallest + (largest - smallest) // 3
        self._texts = texts
        self.calls: list[tuple[int, tuple[int, ...]]] = []

    def kl(self, vector):
        """On all text."""
        costs = np.array([own[i] for own, i in zip(self.true, vector, strict=True)])
        return float(costs.sum() + 0.1 * np.sqrt(costs[1:] * costs[:-1]).sum())

    def measure(self, vectors, windows):
        """Samples on some windows, each of which weighs matrices in its own way."""
        self.calls.append((len(vectors), tuple(windows)))
        rows = []
        for vector in vectors:
            costs = np.array([own[i] for own, i in zip(self.true, vector, strict=True)])
            pairs = 0.1 * np.sqrt(costs[1:] * costs[:-1]).sum()
            samples = []
            for window in windows:
                rng = np.random.default_rng(window)
                weights = np.exp(rng.normal(0, self._texts, (SEGMENTS, len(costs))))
                samples.append((weights @ costs + pairs) * np.exp(rng.normal(0, 0.5)))
            rows.append(np.concatenate(samples))
        return np.array(rows)
