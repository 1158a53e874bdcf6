"""From plans to allocations: round the candidates, score, solve, race, select.

The files of one format are decided together: one bank, one set of scores, one history, and what a
search learns at one size serves the others. Three allocations are then compared for each file: what
the search found, the exact knapsack on the scores, and the largest preset that is no larger. The
best one is used. The text that decides is neither what the search read nor what the closing figures
are measured on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitquilt.allocation import interactions, sensitivity
from bitquilt.allocation.advice import knee_note
from bitquilt.allocation.attribution import ATTRIBUTION_BATCH, kl_attribution
from bitquilt.allocation.evaluator import ROUGH, Evaluator
from bitquilt.allocation.evopress import EvoPressSchedule
from bitquilt.allocation.history import History, history_path
from bitquilt.allocation.measurements import Measurements
from bitquilt.allocation.meter import Limits, Meter
from bitquilt.allocation.plan import Plan, Rivals, candidate_types, largest_preset
from bitquilt.allocation.race_search import SETTLED
from bitquilt.allocation.ray_evaluator import RayEvaluator
from bitquilt.allocation.searching import SearchTask, run_search
from bitquilt.allocation.selection import (
    Ranking,
    called,
    predicted_verdict,
    select_best,
    unrivalled,
    verdict,
)
from bitquilt.allocation.solver import solve
from bitquilt.allocation.space import AllocationSpace, AllocationVector, Candidate, CandidateSets
from bitquilt.allocation.speed_profile import SpeedLimit, speed_limit
from bitquilt.calibration.text_budget import LEAST_INTERACTIONS, TextBudget
from bitquilt.config import SearchConfig
from bitquilt.metrics.original import OriginalModel, tokens_key
from bitquilt.metrics.teacher import Teacher
from bitquilt.qtypes.qtype import Allocation
from bitquilt.rounding.layer_bank import GIVEN, LayerBank
from bitquilt.rounding.rounders import Rounder
from bitquilt.runtime.products import PRODUCTS
from bitquilt.runtime.progress import Progress
from bitquilt.targets import Target

DECIDED = "decided"
"""The folder of decisions whose candidates are gone."""


@dataclass(frozen=True, kw_only=True)
class AllocationText:
    """Windows of tokens for what is decided here, each int64 [N, L]."""

    interactions: Tensor
    """Text that says what matrices cost together, the first of the next; none where there is no
    time."""
    search: Tensor
    """Text that allocations are measured on; what of it is bundled is of domains that nothing was
    calibrated on."""
    selection: Tensor
    """Other documents of such text, which decide between the allocations."""


class Decision(NamedTuple):
    """The allocation of one file."""

    allocation: Allocation
    source: str
    """Where it comes from: a search method, a preset's name, or ``recipe``."""
    rankings: tuple[Ranking, ...]
    """The allocations that it was chosen from, best first; none where there was one only."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        rankings = [asdict(ranking) for ranking in self.rankings]
        return {"allocation": dict(self.allocation), "source": self.source, "rankings": rankings}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Decision:
        """Make it from what :meth:`to_dict` made of one."""
        rankings = tuple(Ranking.from_dict(one) for one in fields["rankings"])
        return cls(fields["allocation"], fields["source"], rankings)


def affordable_search(config: SearchConfig, budget: TextBudget) -> SearchConfig:
    """The search with a number of tokens, or the knapsack where a race would take too long.

    Args:
        config: what was asked for.
        budget: how much text this machine has time for.
    """
    if config.tokens is not None:
        return config
    if config.method == "race" and not budget.races:
        config = replace(config, method="knapsack")
    if config.method == "evopress":  # has a schedule of its own
        return config
    return replace(config, tokens=budget.races * budget.window)


def allocate(
    plans: Sequence[Plan],
    bank: LayerBank,
    rounder: Rounder,
    original: OriginalModel,
    text: AllocationText,
    config: SearchConfig,
    progress: Progress,
) -> list[Decision]:
    """Round the candidates of all planned files, and decide the allocation of each.

    Args:
        plans: the files.
        bank: knows what candidates cost, and has those that mixes consist of.
        rounder: fills it.
        original: reads text where it is needed.
        text: what is read here.
        config: how to search, from :func:`affordable_search`.
        progress: told what goes on.
    """
    decided = {}
    for target in dict.fromkeys(plan.target for plan in plans):
        files = _Files(
            target=target,
            plans=[plan for plan in plans if plan.target is target],
            bank=bank,
            rounder=rounder,
            original=original,
            text=text,
            config=config,
            progress=progress,
        )
        decided[target] = iter(files.settled() if rounder.settles else files.allocate())
    return [next(decided[plan.target]) for plan in plans]


def _say_given(plan: Plan, decision: Decision, bank: LayerBank, progress: Progress) -> None:
    """Say how many of a file's matrices other files have given."""
    cells = [bank.cells(module)[qtype] for module, qtype in decision.allocation.items()]
    given = sum(cell.kept == GIVEN for cell in cells)
    progress.say(
        f"{plan.label} for {plan.target}: {given} of {len(cells)} matrices come from --cells"
    )


@dataclass(kw_only=True)
class _Files:
    """The files of one format, and what it takes to decide them."""

    target: Target
    plans: list[Plan]
    bank: LayerBank
    rounder: Rounder
    original: OriginalModel
    text: AllocationText
    config: SearchConfig
    progress: Progress

    def settled(self) -> list[Decision]:
        """Decide each, have what they consist of as files are to have it, and nothing else.

        What was decided is kept, for the candidates that it was chosen from are not.
        """
        name, work = f"{DECIDED}/{self.target.name}/{self._request_key()}", self.bank.work
        if (known := work.load_json(name)) is None:
            decisions = self.allocate()
            kept = [decision.to_dict() for decision in decisions]
            labels = [plan.label for plan in self.plans]
            work.save_json(name, {"labels": labels, "decisions": kept})
        else:
            decisions = [Decision.from_dict(one) for one in known["decisions"]]
            for plan, decision in zip(self.plans, decisions, strict=True):
                source = called(decision.source)
                said = f"the types of {source} are used, as an earlier run has decided"
                self.progress.say(f"{plan.label} for {self.target}: {said}")
        mixes = [decision.allocation for decision in decisions]
        if known is None or self.bank.lacks(mixes):
            self.rounder.settle(mixes, str(self.target))
        return decisions

    def _request_key(self) -> str:
        """A name for all that decisions depend on, beside the settings of the work directory."""
        asked: list[object] = [asdict(self.config)]
        for plan in self.plans:
            sets = plan.space.candidate_sets if plan.space else {}
            types = {module: [one.qtype for one in own] for module, own in sets.items()}
            capacity = plan.space.capacity if plan.space else 0
            asked.append([plan.label, capacity, types, dict(plan.allocation)])
        texts = self.text.interactions, self.text.search, self.text.selection
        return _key(torch.cat([text.flatten() for text in texts]), asked)

    def allocate(self) -> list[Decision]:
        """Decide each, and say how much of it other files have given."""
        decisions = self._decided()
        if self.bank.given:
            for plan, decision in zip(self.plans, decisions, strict=True):
                _say_given(plan, decision, self.bank, self.progress)
        return decisions

    def _decided(self) -> list[Decision]:
        """Decide each: round, score, solve, race, select."""
        rivals = [largest_preset(plan, self.bank.checkpoint) for plan in self.plans]
        limit = self._speed_limit(rivals)
        if limit is not None:
            self.plans = [limit.timed(plan) for plan in self.plans]
            rivals = [limit.fast_enough(rival) for rival in rivals]
        candidates = candidate_types(self.plans, rivals, self.bank.checkpoint)
        self.rounder.score(candidates, str(self.target))
        capacities = {plan.label: plan.space.capacity for plan in self.plans if plan.space}
        if not capacities:
            self._make([plan.allocation for plan in self.plans])
            return [_as_planned(plan) for plan in self.plans]

        evaluator, measure = self._evaluators()
        measurements = self._measurements(evaluator, measure)
        space = AllocationSpace.of(self._scored(measurements), limit.seconds if limit else math.inf)
        together = self.rounder.complete and len(self.text.interactions)
        if self.config.scores == "predicted" and together:
            space = self._corrected(space, list(capacities.values()))
        self._say_knees(space)
        exact = {label: solve(space, capacity) for label, capacity in capacities.items()}
        if not self.rounder.complete:
            return self._predicted(space, exact, rivals, limit)
        best = self._searched(space, capacities, exact, measurements)
        named = [
            {
                self.config.method: space.allocation(best[plan.label]),
                "knapsack": space.allocation(exact[plan.label]),
                **rival,
            }
            if plan.space
            else {"": plan.allocation}
            for plan, rival in zip(self.plans, rivals, strict=True)
        ]
        self._make([mix for own in named for mix in own.values()])
        return [
            self._select(plan, own, evaluator, limit) if plan.space else _as_planned(plan)
            for plan, own in zip(self.plans, named, strict=True)
        ]

    def _predicted(
        self,
        space: AllocationSpace,
        exact: Mapping[str, AllocationVector],
        rivals: Sequence[Rivals],
        limit: SpeedLimit | None,
    ) -> list[Decision]:
        """Take what the knapsack found; presets are not made, only what they cost is predicted."""
        bank, decisions = self.bank, []
        for plan, rival in zip(self.plans, rivals, strict=True):
            if plan.space is None:
                decisions.append(_as_planned(plan))
                continue
            named = {"knapsack": space.allocation(exact[plan.label]), **rival}
            costs = {
                name: sum(bank.scores(module)[qtype] for module, qtype in mix.items())
                for name, mix in named.items()
            }
            decisions.append(Decision(named["knapsack"], "knapsack", ()))
            self._say_chosen(plan, predicted_verdict(costs), named["knapsack"], limit)
        self._make([decision.allocation for decision in decisions])
        return decisions

    def _make(self, mixes: Sequence[Allocation]) -> None:
        """Let the bank have what mixes consist of."""
        chosen = {
            module: list(dict.fromkeys(mix[module] for mix in mixes))
            for module in self.bank.checkpoint.matrices
        }
        self.rounder.make(chosen, str(self.target))

    def _speed_limit(self, rivals: Sequence[Rivals]) -> SpeedLimit | None:
        """The speed that files have to reach, with the seconds of every candidate."""
        if self.config.tokens_per_second is None:
            return None
        checkpoint = self.bank.checkpoint
        candidates = candidate_types(self.plans, rivals, checkpoint)
        rate = self.config.tokens_per_second
        return speed_limit(rate, checkpoint, self.target, candidates, self.progress)

    def _evaluators(self) -> tuple[Evaluator, Evaluator | RayEvaluator]:
        """What measures allocations here, and what measures them for the search."""
        checkpoint, packed = self.bank.checkpoint, sensitivity.with_originals(self.bank)
        here = Evaluator(checkpoint, packed)
        if self.config.ray is None:
            return here, here
        address = self.config.ray
        return here, RayEvaluator(checkpoint, packed, address, here.precision, self.progress)

    def _measurements(
        self, evaluator: Evaluator, measure: Evaluator | RayEvaluator
    ) -> Measurements:
        """What the search measures on its text, remembered from earlier runs.

        The original reads the text when it is first needed. Where products of matrices are fast
        and rough, what that costs is said, for one allocation.
        """

        @cache
        def teacher() -> Teacher:
            work = self.text.search.numel() * self.bank.checkpoint.block_weights
            with self.progress.stage("Reading text to search on", work, "search text"):
                read = self.original.on(self.text.search, advance=self.progress.advance)
            if evaluator.precision != "highest":
                noise = evaluator.noise(read, self.plans[0].allocation, [0])
                kind = PRODUCTS[evaluator.precision]
                if abs(noise) <= ROUGH:
                    self.progress.say(
                        f"The search multiplies matrices in {kind}, which changes the KL by "
                        f"{noise:+z.2%}"
                    )
                else:
                    self.progress.say(
                        f"The search multiplies matrices in float32, because {kind} would change "
                        f"the KL by {noise:+z.2%}"
                    )
                    for each in (evaluator, measure):
                        each.multiply_exactly()
            return read

        windows, window_tokens = self.text.search.shape
        text = tokens_key(self.text.search)[:8]  # it depends on a user's held-out text too
        history = History(history_path(self.bank.work.path, self.target.name, text))
        return Measurements(
            lambda allocations, which: measure(teacher(), allocations, which),
            windows,
            Meter(window_tokens),
            history,
        )

    def _scored(self, measurements: Measurements) -> CandidateSets:
        """Everything that any of the files may choose, with its score."""
        together: dict[str, dict[str, Candidate]] = {
            module: {} for module in self.bank.checkpoint.matrices
        }
        for plan in self.plans:
            for module, own in plan.space.candidate_sets.items() if plan.space else ():
                together[module] |= {candidate.qtype: candidate for candidate in own}
        sets = {module: list(own.values()) for module, own in together.items()}
        if self.config.scores == "predicted":
            return sensitivity.predicted(self.bank, sets)
        cells = sum(map(len, sets.values()))
        with self.progress.stage("Measuring each matrix alone", cells, "scores"):
            return sensitivity.measured(sets, measurements, self.progress)

    def _corrected(self, space: AllocationSpace, capacities: Sequence[int]) -> AllocationSpace:
        """The space scored by what matrices cost beside the others; measured once, kept.

        Several budgets share the text that one has, but for the least that tells anything.
        """
        share = len(self.text.interactions) // len(set(capacities))
        tokens = self.text.interactions[: max(LEAST_INTERACTIONS, share)]
        bank, progress = self.bank, self.progress

        def attribution(allocation: Allocation) -> NDArray[np.float64]:
            name = f"attribution/{_key(tokens, [*allocation.items()])}"
            if (known := bank.work.load_json(name)) is None:
                batches = math.ceil(len(tokens) / ATTRIBUTION_BATCH)
                with progress.stage("Measuring matrices together", batches + 1, "interactions"):
                    teacher = self.original.on(tokens)
                    progress.advance()
                    known = kl_attribution(
                        bank.checkpoint, allocation, bank.packed, teacher, progress
                    ).tolist()
                bank.work.save_json(name, known)
            return np.array(known)

        return interactions.corrected_scores(space, capacities, attribution)

    def _say_knees(self, space: AllocationSpace) -> None:
        """Say which budgets are below the knee of the front."""
        for plan in self.plans:
            if plan.space is not None and (
                note := knee_note(space, plan.space.capacity, plan.layout)
            ):
                self.progress.say(f"{plan.label} for {plan.target}: {note}")

    def _searched(
        self,
        space: AllocationSpace,
        capacities: Mapping[str, int],
        exact: Mapping[str, AllocationVector],
        measurements: Measurements,
    ) -> Mapping[str, AllocationVector]:
        """What the method finds for each file; the exact knapsack searches no further."""
        config = self.config
        if config.method == "knapsack":
            return exact
        limits = Limits(
            tokens=math.inf if config.tokens is None else config.tokens,
            seconds=math.inf if config.seconds is None else config.seconds,
        )
        task = SearchTask(space, capacities, config.seed)
        tokens = config.tokens or EvoPressSchedule().token_forwards * len(set(capacities.values()))
        expected = tokens * SETTLED if config.method == "race" else tokens
        with self.progress.stage(f"Searching for {self.target}", expected, "search"):
            return run_search(config.method, task, measurements, limits, self.progress)

    def _select(
        self,
        plan: Plan,
        named: Mapping[str, Allocation],
        evaluator: Evaluator,
        limit: SpeedLimit | None,
    ) -> Decision:
        """The best of a file's allocations on the text for that, and a word about it.

        Where all are the same, none of that text is read: its KL would decide nothing.
        """
        if len({json.dumps(one, sort_keys=True) for one in named.values()}) == 1:
            best = next(iter(named))
            self._say_chosen(plan, unrivalled(best), named[best], limit)
            return Decision(named[best], best, ())
        rankings = self._rankings(plan, named, evaluator)
        best = rankings[0].name
        before = ", before polishing" if self.bank.rounding == "full" else ""
        self._say_chosen(plan, verdict(rankings), named[best], limit, before)
        return Decision(named[best], best, rankings)

    def _say_chosen(
        self,
        plan: Plan,
        said: str,
        mix: Allocation,
        limit: SpeedLimit | None,
        before: str = "",
    ) -> None:
        """Say which types a file has, and why."""
        self.progress.say(f"{plan.label} for {plan.target}{before}: {said}")
        if limit is not None:
            rate = limit.predicted(mix)
            self.progress.say(f"{plan.label}: {rate:.4g} tokens a second predicted")

    def _rankings(
        self, plan: Plan, named: Mapping[str, Allocation], evaluator: Evaluator
    ) -> tuple[Ranking, ...]:
        """A file's allocations, best first, with the sizes of files on them."""
        size = partial(plan.target.plan, self.bank.checkpoint)
        found = self._ranked(named, evaluator)
        return tuple(replace(one, nbytes=size(named[one.name]).total_bytes) for one in found)

    def _ranked(self, named: Mapping[str, Allocation], evaluator: Evaluator) -> tuple[Ranking, ...]:
        """Allocations, best first; what an earlier run found on the same text is kept."""
        tokens, work = self.text.selection, self.bank.work
        name = f"selection/{_key(tokens, [[name, [*own.items()]] for name, own in named.items()])}"
        if (known := work.load_json(name)) is not None:
            return tuple(Ranking.from_dict(one) for one in known)
        with self.progress.stage(f"Selecting for {self.target}", len(tokens), "selection"):
            rankings = select_best(
                named,
                evaluator,
                lambda windows: self.original.on(tokens[windows.start : windows.stop]),
                len(tokens),
                self.progress,
            )
        work.save_json(name, [asdict(ranking) for ranking in rankings])
        return rankings


def _as_planned(plan: Plan) -> Decision:
    """The allocation of a plan that leaves nothing to decide."""
    return Decision(plan.allocation, plan.preset or "recipe", ())


def _key(tokens: Tensor, measured: Sequence[object]) -> str:
    """A name for a text, and what is measured on it."""
    digest = hashlib.sha256(tokens.numpy().tobytes())
    digest.update(json.dumps(measured).encode())
    return digest.hexdigest()[:16]
