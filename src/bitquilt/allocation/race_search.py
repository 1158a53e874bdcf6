"""The race search: allocations that a learned prediction proposes race against the incumbent.

It starts from the exact knapsack on the scores, and from allocations around it that are each the
exact knapsack under other scores that are as likely. What they measure is what a surrogate
(:mod:`.surrogate`) learns from. From then on every round proposes the surrogate's own best
allocation, and the best under weights drawn from what is still possible (Thompson sampling), of the
whole model and of a random part of it with the rest as it is. They race on true KL
(:mod:`.racing`). Every race reads other windows, so that the surrogate learns about allocations and
not about one text. The search is over when a round's intervals leave nothing worth having.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice

import numpy as np

from bitquilt.allocation.moves import level_swaps
from bitquilt.allocation.racing import Difference, EvaluateFn, race
from bitquilt.allocation.solver import solve
from bitquilt.allocation.space import AllocationSpace, AllocationVector, Float64Array, Incumbent
from bitquilt.allocation.surrogate import Observation, Parts, Surrogate
from bitquilt.runtime.progress import Progress, Silent

SETTLED = 0.85
"""The share of its tokens that a race search takes, as a mean: it is over when it is settled, or
when they are spent."""


@dataclass(frozen=True, kw_only=True)
class RaceSchedule:
    """How much the race search tries, and when it stops."""

    first_races: int = 6
    """Races before the first round; there is one for each capacity at least."""
    first_candidates: int = 8
    """Allocations that take part in each of those beside the incumbent."""
    first_windows: int = 3
    """Windows that each of those reads, which no other of them reads."""
    rungs: tuple[int, ...] = (4, 4, 8)
    """Windows that each rung of a round's race adds."""
    proposals: int = 10
    """Proposals of a round; half of them change a part of the model only."""
    open_share: float = 0.3
    """Share of the matrices that are open to change in those."""
    linearizations: int = 3
    """How often interactions are taken at the last solution and the knapsack is solved again."""
    least_cost: float = 0.05
    """The least that a drawn cost may be, as a share of the score: no error is for nothing."""
    least_gain: float = 0.005
    """A possible gain below this share of the KL is not worth another round."""
    least_rank: float = 0.3
    """The surrogate is not used while its rank correlation with measurements is below this."""


class RaceSearch:
    """One search, for one or several capacities that share what is learned."""

    def __init__(
        self,
        space: AllocationSpace,
        capacities: Sequence[int],
        evaluate: EvaluateFn,
        windows: int,
        rng: np.random.Generator,
        progress: Progress,
        schedule: RaceSchedule | None = None,
    ) -> None:
        """Begin with the exact knapsack on the scores.

        Args:
            space: what may be chosen, with its scores.
            capacities: bytes that the matrices may take.
            evaluate: gives the KL of allocations.
            windows: how many windows there are to measure on.
            rng: decides what is proposed.
            progress: told how well scores and surrogate predict.
            schedule: how much is tried; the defaults if not given.
        """
        self.space, self.capacities = space, capacities
        self.best = {capacity: solve(space, capacity) for capacity in capacities}
        """Capacity → the best allocation so far."""
        self._evaluate, self._windows, self._rng, self._progress = evaluate, windows, rng, progress
        self._schedule = schedule or RaceSchedule()
        self._parts = Parts(space)
        self._surrogate = Surrogate.prior(self._parts)
        self._trusted = True
        self._observations: list[Observation] = []
        self._texts = count()
        self._read = 0

    def run(self) -> Iterator[Incumbent]:
        """Search until nothing is to be gained; yield a capacity's incumbent after each race."""
        schedule = self._schedule
        races = max(schedule.first_races, len(self.capacities))
        for capacity in islice(cycle(self.capacities), races):
            best = self.best[capacity]
            candidates = [best, *self._draws(capacity, schedule.first_candidates, 1.0)]
            samples = self._observe(candidates, self._next_windows(schedule.first_windows))
            kl = float(samples[0].mean())
            yield Incumbent(capacity, best, kl, before=kl)
        self._learn(self._progress)
        going = list(self.capacities)
        while going:
            for capacity in list(going):
                before, finished = self.best[capacity], self._round(capacity)
                best = self.best[capacity]
                rivals = len(finished) - 1
                if not self._worth_another(finished, best):
                    going.remove(capacity)
                    rivals = 0
                kl, kl_before = (float(finished[vector].mean()) for vector in (best, before))
                yield Incumbent(capacity, best, kl, kl_before, rivals)

    def _round(self, capacity: int) -> dict[AllocationVector, Float64Array]:
        """Race new proposals against the incumbent, on other text than the last race's.

        The winner is what the surrogate, which has now learned from the race, thinks best among
        those that finished: the race alone would favour the luckiest.

        Returns:
            The samples of those that finished.
        """
        best = self.best[capacity]
        rungs = [self._next_windows(windows) for windows in self._schedule.rungs]
        proposals = self._proposals(capacity)
        finished = race(best, proposals, self._evaluate, rungs)
        self._observe([best, *proposals], rungs[0])
        if len(finished) > 1:
            later = {window for rung in rungs for window in rung} - set(rungs[0])
            self._observe(list(finished), sorted(later) or rungs[0])
        self._learn(Silent())
        if self._trusted:
            self.best[capacity] = min(finished, key=self._surrogate.predict)
        else:
            self.best[capacity] = next(iter(finished))
        return finished

    def _worth_another(
        self, finished: dict[AllocationVector, Float64Array], best: AllocationVector
    ) -> bool:
        """Tell whether any that finished may yet turn out to be much better than the best."""
        gains = [Difference.of(finished[best], samples) for samples in finished.values()]
        least = self._schedule.least_gain * finished[best].mean()
        return bool(max(gain.high for gain in gains) > least)

    def _next_windows(self, count: int) -> list[int]:
        """Windows in turn, over and over."""
        windows = [(self._read + i) % self._windows for i in range(count)]
        self._read += count
        return list(dict.fromkeys(windows))

    def _observe(self, vectors: Sequence[AllocationVector], windows: Sequence[int]) -> Float64Array:
        """Measure allocations on one text, and add the results to what is learned from."""
        different = list(dict.fromkeys(vectors))
        samples, text = self._evaluate(different, windows), next(self._texts)
        self._observations += [
            Observation(text, vector, float(kl))
            for vector, kl in zip(different, samples.mean(1), strict=True)
        ]
        return samples

    def _learn(self, progress: Progress) -> None:
        """Fit the surrogate to all observations; one that does not predict is not used."""
        self._surrogate, scores, learned = Surrogate.fit(self._parts, self._observations)
        self._trusted = learned.rank >= self._schedule.least_rank
        count = len(self._observations)
        progress.say(
            f"{count} mixes of types were measured. The scores predict their KL with {scores}; a "
            f"model that has learned from the other mixes predicts it with {learned}"
        )
        if not self._trusted:
            progress.say(
                "Neither is reliable enough, so the search next tries random exchanges of bits "
                "between matrices"
            )

    def _proposals(self, capacity: int) -> list[AllocationVector]:
        best, count = self.best[capacity], self._schedule.proposals
        if not self._trusted:
            swaps = [level_swaps(self.space, best, capacity, self._rng) for _ in range(count)]
            return [vector for vector in swaps if self.space.fast_enough(vector)]
        whole = count // 2
        return [
            self._solved(capacity, self._surrogate.mean, 1.0),
            *self._draws(capacity, whole - 1, 1.0),
            *self._draws(capacity, count - whole, self._schedule.open_share),
        ]

    def _draws(self, capacity: int, count: int, part: float) -> list[AllocationVector]:
        """Yield the best allocations under possible weights, with a part open to change."""
        return [self._solved(capacity, self._surrogate.draw(self._rng), part) for _ in range(count)]

    def _solved(self, capacity: int, weights: Float64Array, part: float) -> AllocationVector:
        """Return the best allocation under these weights."""
        vector = self.best[capacity]
        closed = np.flatnonzero(self._rng.random(len(vector)) >= part).tolist()
        kept = {m: vector[m] for m in closed}
        for _ in range(self._schedule.linearizations):
            costs = self._parts.around(vector, weights)
            bounded = [
                np.maximum(own, self._schedule.least_cost * scores)
                for own, scores in zip(costs, self.space.scores, strict=True)
            ]
            vector = solve(self.space.rescored(bounded), capacity, kept)
        return vector
