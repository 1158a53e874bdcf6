"""The search: mixes that a learned prediction proposes race against the best one so far.

It starts from the exact knapsack on the scores, and from mixes around it that are each the exact
knapsack under other scores that are as likely. What they measure teaches a surrogate
(:mod:`.surrogate`). From then on every round proposes the surrogate's own best mix, and the best
under weights drawn from what is still possible (Thompson sampling), of the whole model and of a
random part of it with the rest as it is. They race on true KL (:mod:`.racing`). Every race reads
other windows, so that the surrogate learns about mixes and not about one text. The search is over
when a round's intervals leave nothing worth having.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice

import numpy as np

from bitquilt.search.evopress import swapped
from bitquilt.search.mixes import Floats, Mixes, Standing, Vector
from bitquilt.search.racing import Difference, Measure, race
from bitquilt.search.surrogate import Parts, Surrogate, Trust

LESSONS, PUPILS = 4, 8
"""Mixes measured before the first round: so many times so many, each time on other windows."""
HEATS = (4, 4, 8)
"""Windows read in each heat of a race."""
PROPOSALS = 12
"""Of a round; half of them change a part of the model only."""
PART = 0.3
"""Matrices open to change in those."""
RELINEARIZED = 3
"""Times that interactions are taken at the solution and the knapsack is solved again."""
LEAST = 0.05
"""What a drawn cost is at least, as a share of the score: no error is for nothing."""
WORTH = 0.005
"""A possible gain below that share of the KL is not worth another round."""
TRUSTED = 0.3
"""Rank correlation of predictions with measurements below which the surrogate has no say."""


class Refinement:
    """One search, for one or several capacities that share what is learned."""

    def __init__(
        self,
        mixes: Mixes,
        capacities: Sequence[int],
        measure: Measure,
        windows: int,
        rng: np.random.Generator,
        say: Callable[[str], None],
    ) -> None:
        """Begin with the exact knapsack on the scores.

        Args:
            mixes: what may be chosen, with its scores.
            capacities: bytes that the matrices may take.
            measure: gives the KL of mixes.
            windows: how many there are to measure on.
            rng: decides what is proposed.
            say: told how well scores and surrogate predict.
        """
        self.mixes, self.capacities = mixes, capacities
        self.start = {c: mixes.cheapest(mixes.scores, c, {}) for c in capacities}
        self.best = dict(self.start)
        """Capacity → the best mix so far."""
        self._measure, self._windows, self._rng, self._say = measure, windows, rng, say
        self._parts = Parts(mixes)
        self._surrogate = Surrogate.fit(self._parts, [])
        self._trusted = True
        self._lessons: list[tuple[int, Vector, float]] = []
        """(capacity, mix, its KL over that of the capacity's start on the same text)."""
        self._levels: dict[int, list[float]] = {c: [] for c in capacities}
        """KL of each start on the text of each race."""
        self._kl: dict[int, float] = {}
        """Capacity → KL of the best mix in the race that it won last."""
        self._read = 0

    def run(self) -> Iterator[Standing]:
        """Search until nothing is to be gained; the best mix of a capacity after a race."""
        for capacity in islice(cycle(self.capacities), max(LESSONS, len(self.capacities))):
            self._race(capacity, self._draws(capacity, PUPILS, 1.0), HEATS[:1])
            yield self._standing(capacity)
        self._learn()
        self._report()
        going = list(self.capacities)
        while going:
            for capacity in list(going):
                if not self._round(capacity):
                    going.remove(capacity)
                yield self._standing(capacity)

    def _standing(self, capacity: int) -> Standing:
        return Standing(capacity, self.best[capacity], self._kl[capacity])

    def _round(self, capacity: int) -> bool:
        """Race new proposals against the best mix; whether another round may be worth it."""
        best = self.best[capacity]
        finished = self._race(capacity, self._proposals(capacity), HEATS)
        self._learn()
        gains = [Difference.of(finished[best], samples) for samples in finished.values()]
        return bool(max(gain.high for gain in gains) > WORTH * finished[best].mean())

    def _race(
        self, capacity: int, proposals: Sequence[Vector], heats: Sequence[int]
    ) -> dict[Vector, Floats]:
        """Measure mixes on other text than the last race did; the winner is now the best mix."""
        start, best = self.start[capacity], self.best[capacity]
        windows = [self._next_windows(heat) for heat in heats]
        candidates = list(dict.fromkeys([start, best, *proposals]))
        first = dict(zip(candidates, self._measure(candidates, windows[0]), strict=True))
        level = float(first[start].mean())
        self._levels[capacity].append(level)
        self._lessons += [
            (capacity, mix, float(samples.mean()) / level) for mix, samples in first.items()
        ]
        finished = race(best, candidates, self._measure, windows)
        winner, samples = next(iter(finished.items()))
        self.best[capacity], self._kl[capacity] = winner, float(samples.mean())
        return finished

    def _next_windows(self, count: int) -> list[int]:
        """Windows in turn, over and over."""
        windows = [(self._read + i) % self._windows for i in range(count)]
        self._read += count
        return windows

    def _learn(self) -> None:
        levels = {c: float(np.mean(found)) for c, found in self._levels.items() if found}
        measured = [(mix, ratio * levels[c]) for c, mix, ratio in self._lessons]
        self._surrogate = Surrogate.fit(self._parts, measured)

    def _report(self) -> None:
        """Say how well measured KL is predicted; a surrogate that does not predict is dropped."""
        measured = np.array([ratio for *_, ratio in self._lessons])
        totals = {c: self._parts.of(start)[0] for c, start in self.start.items()}
        scores = np.array([self._parts.of(mix)[0] / totals[c] for c, mix, _ in self._lessons])
        plain, learned = (
            Trust.of(scores, measured),
            Trust.of(measured * self._surrogate.checked, measured),
        )
        self._trusted = learned.rank >= TRUSTED
        self._say(f"scores predict the KL of {len(measured)} measured mixes with {plain}")
        self._say(f"corrected by the other mixes, with {learned}")
        if not self._trusted:
            self._say("that is too little to trust: what is tried next are random level swaps")

    def _proposals(self, capacity: int) -> list[Vector]:
        best = self.best[capacity]
        if not self._trusted:
            return [swapped(self.mixes, best, capacity, self._rng) for _ in range(PROPOSALS)]
        whole = PROPOSALS // 2
        return [
            self._solved(capacity, self._surrogate.mean, 1.0),
            *self._draws(capacity, whole - 1, 1.0),
            *self._draws(capacity, PROPOSALS - whole, PART),
        ]

    def _draws(self, capacity: int, count: int, part: float) -> list[Vector]:
        """Best mixes under weights that are possible, with a part of the model open to change."""
        return [self._solved(capacity, self._surrogate.draw(self._rng), part) for _ in range(count)]

    def _solved(self, capacity: int, weights: Floats, part: float) -> Vector:
        """The best mix under these weights."""
        mix = self.best[capacity]
        closed = np.flatnonzero(self._rng.random(len(mix)) >= part).tolist()
        kept = {m: mix[m] for m in closed}
        for _ in range(RELINEARIZED):
            costs = self._parts.around(mix, weights)
            bounded = [
                np.maximum(own, LEAST * scores)
                for own, scores in zip(costs, self.mixes.scores, strict=True)
            ]
            mix = self.mixes.cheapest(bounded, capacity, kept)
        return mix
