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

from collections.abc import Iterator, Sequence
from itertools import count, cycle, islice

import numpy as np

from bitquilt.allocation.evopress import swapped
from bitquilt.allocation.racing import Difference, EvaluateFn, race
from bitquilt.allocation.space import AllocationSpace, AllocationVector, Float64Array, Incumbent
from bitquilt.allocation.surrogate import Observation, Parts, Surrogate
from bitquilt.runtime.progress import Progress, Silent

LESSONS, PUPILS, LESSON_WINDOWS = 6, 8, 3
"""Races before the first round, each of that many mixes on that many windows of its own."""
RUNGS = (4, 4, 8)
"""Windows read in each heat of a round."""
PROPOSALS = 10
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


class RaceSearch:
    """One search, for one or several capacities that share what is learned."""

    def __init__(
        self,
        mixes: AllocationSpace,
        capacities: Sequence[int],
        measure: EvaluateFn,
        windows: int,
        rng: np.random.Generator,
        progress: Progress,
    ) -> None:
        """Begin with the exact knapsack on the scores.

        Args:
            mixes: what may be chosen, with its scores.
            capacities: bytes that the matrices may take.
            measure: gives the KL of mixes.
            windows: how many there are to measure on.
            rng: decides what is proposed.
            progress: told how well scores and surrogate predict.
        """
        self.mixes, self.capacities = mixes, capacities
        self.best = {c: mixes.solve(mixes.scores, c, {}) for c in capacities}
        """Capacity → the best mix so far."""
        self._measure, self._windows, self._rng, self._progress = measure, windows, rng, progress
        self._parts = Parts(mixes)
        self._surrogate = Surrogate.untaught(self._parts)
        self._trusted = True
        self._lessons: list[Observation] = []
        self._texts = count()
        self._read = 0

    def run(self) -> Iterator[Incumbent]:
        """Search until nothing is to be gained; the best mix of a capacity after a race."""
        for capacity in islice(cycle(self.capacities), max(LESSONS, len(self.capacities))):
            best = self.best[capacity]
            pupils = [best, *self._draws(capacity, PUPILS, 1.0)]
            samples = self._note_read(pupils, self._next_windows(LESSON_WINDOWS))
            yield Incumbent(capacity, best, float(samples[0].mean()))
        self._learn(self._progress)
        going = list(self.capacities)
        while going:
            for capacity in list(going):
                finished = self._round(capacity)
                best = self.best[capacity]
                if not self._worth_another(finished, best):
                    going.remove(capacity)
                yield Incumbent(capacity, best, float(finished[best].mean()))

    def _round(self, capacity: int) -> dict[AllocationVector, Float64Array]:
        """Race new proposals against the best mix, on other text than the last race's.

        The winner is what the surrogate, which has now learned from the race, thinks best among
        those that finished: the race alone would favour the luckiest.

        Returns:
            samples of those that finished.
        """
        best, heats = self.best[capacity], [self._next_windows(heat) for heat in RUNGS]
        proposals = self._proposals(capacity)
        finished = race(best, proposals, self._measure, heats)
        self._note_read([best, *proposals], heats[0])
        if len(finished) > 1:
            later = {window for heat in heats for window in heat} - set(heats[0])
            self._note_read(list(finished), sorted(later) or heats[0])
        self._learn(Silent())
        if self._trusted:
            self.best[capacity] = min(finished, key=self._surrogate.predict)
        else:
            self.best[capacity] = next(iter(finished))
        return finished

    def _worth_another(
        self, finished: dict[AllocationVector, Float64Array], best: AllocationVector
    ) -> bool:
        """Whether any that finished may yet turn out to be much better than the best."""
        gains = [Difference.of(finished[best], samples) for samples in finished.values()]
        return bool(max(gain.high for gain in gains) > WORTH * finished[best].mean())

    def _next_windows(self, count: int) -> list[int]:
        """Windows in turn, over and over."""
        windows = [(self._read + i) % self._windows for i in range(count)]
        self._read += count
        return list(dict.fromkeys(windows))

    def _note_read(self, mixes: Sequence[AllocationVector], windows: Sequence[int]) -> Float64Array:
        """Add what mixes showed on one text to what is learned from; their samples."""
        different = list(dict.fromkeys(mixes))
        samples, text = self._measure(different, windows), next(self._texts)
        kl = samples.mean(1)
        self._lessons += [
            Observation(text, mix, float(own)) for mix, own in zip(different, kl, strict=True)
        ]
        return samples

    def _learn(self, progress: Progress) -> None:
        """Fit the surrogate to all lessons; one that does not predict has no say."""
        self._surrogate, scores, learned = Surrogate.fit(self._parts, self._lessons)
        self._trusted = learned.rank >= TRUSTED
        progress.say(f"{len(self._lessons)} mixes measured; scores predict their KL with {scores}")
        progress.say(f"the surrogate, which learns from the others, with {learned}")
        if not self._trusted:
            progress.say("neither is to be trusted: what is tried next are random level swaps")

    def _proposals(self, capacity: int) -> list[AllocationVector]:
        best = self.best[capacity]
        if not self._trusted:
            swaps = [swapped(self.mixes, best, capacity, self._rng) for _ in range(PROPOSALS)]
            return [mix for mix in swaps if self.mixes.fast_enough(mix)]
        whole = PROPOSALS // 2
        return [
            self._solved(capacity, self._surrogate.mean, 1.0),
            *self._draws(capacity, whole - 1, 1.0),
            *self._draws(capacity, PROPOSALS - whole, PART),
        ]

    def _draws(self, capacity: int, count: int, part: float) -> list[AllocationVector]:
        """Best mixes under weights that are possible, with a part of the model open to change."""
        return [self._solved(capacity, self._surrogate.draw(self._rng), part) for _ in range(count)]

    def _solved(self, capacity: int, weights: Float64Array, part: float) -> AllocationVector:
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
            mix = self.mixes.solve(bounded, capacity, kept)
        return mix
