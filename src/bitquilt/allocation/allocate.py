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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bitquilt.allocation import interactions, presets, sensitivity
from bitquilt.allocation.evaluator import PRODUCTS, Evaluator
from bitquilt.allocation.history import History, history_path
from bitquilt.allocation.measurements import EvaluateAllocationsFn, Measurements
from bitquilt.allocation.meter import Limits, Meter
from bitquilt.allocation.plan import Plan, cell_bytes
from bitquilt.allocation.racing import by_segment
from bitquilt.allocation.ray_evaluator import RayEvaluator
from bitquilt.allocation.searching import SearchTask, run_search
from bitquilt.allocation.selection import Ranking, rank
from bitquilt.allocation.solver import solve
from bitquilt.allocation.space import AllocationSpace, AllocationVector, Candidate, CandidateSets
from bitquilt.allocation.speed_profile import SpeedLimit, speed_limit
from bitquilt.calibration.text_budget import LEAST_INTERACTIONS, LEAST_RACED, TextBudget
from bitquilt.config import SearchConfig
from bitquilt.errors import UserError
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import Teacher
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Allocation
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.rounding.round_layers import round_layers
from bitquilt.runtime.progress import Progress
from bitquilt.targets import Target

FIRST_RANKED = 4
"""Windows after which allocations are ranked for the first time, and then at twice as many."""


@dataclass(frozen=True, kw_only=True)
class AllocationText:
    """Windows of tokens for what is decided here, each int64 [N, L]."""

    interactions: Tensor
    """Calibration text that says what matrices cost together; none where there is no time."""
    search: Tensor
    """Calibration text that allocations are measured on."""
    selection: Tensor
    """Held-out text that decides between the allocations."""


class Decision(NamedTuple):
    """The allocation of one file."""

    allocation: Allocation
    source: str
    """Where it comes from: a search method, a preset's name, or ``recipe``."""
    rankings: tuple[Ranking, ...]
    """The allocations that it was chosen from, best first; none where a recipe said it all."""


Named = Mapping[str, Allocation]
"""Allocations by the name of the method or preset that they come from."""


def affordable_search(config: SearchConfig, budget: TextBudget, progress: Progress) -> SearchConfig:
    """The search with a number of tokens, or the knapsack where a race would take too long.

    Args:
        config: what was asked for.
        budget: how much text this machine has time for.
        progress: told where another method stands in.
    """
    if config.tokens is not None:
        return config
    if config.method == "race" and not budget.races:
        progress.say(
            "the mix is the exact knapsack's: on this machine a race would take long; "
            f"--search-tokens {LEAST_RACED * budget.window} or more runs it"
        )
        config = replace(config, method="knapsack")
    # EvoPress has a schedule of its own
    tokens = math.inf if config.method == "evopress" else budget.races * budget.window
    return replace(config, tokens=tokens)


def allocate(
    plans: Sequence[Plan],
    bank: LayerBank,
    original: OriginalModel,
    text: AllocationText,
    config: SearchConfig,
    progress: Progress,
) -> list[Decision]:
    """Round the candidates of all planned files, and decide the allocation of each.

    Args:
        plans: the files.
        bank: the candidates are rounded into it.
        original: reads text where it is needed.
        text: what is read here.
        config: how to search, from :func:`affordable_search`.
        progress: told what goes on.
    """
    decided = {}
    for target in dict.fromkeys(plan.target for plan in plans):
        own = [plan for plan in plans if plan.target is target]
        decided[target] = iter(
            _allocate_target(target, own, bank, original, text, config, progress)
        )
    return [next(decided[plan.target]) for plan in plans]


def _allocate_target(
    target: Target,
    plans: Sequence[Plan],
    bank: LayerBank,
    original: OriginalModel,
    text: AllocationText,
    config: SearchConfig,
    progress: Progress,
) -> list[Decision]:
    """Decide the files of one format."""
    rivals = [_largest_preset(plan, bank.checkpoint) for plan in plans]
    limit = _speed_limit(target, plans, rivals, bank.checkpoint, config, progress)
    if limit is not None:
        plans = [limit.timed(plan) for plan in plans]
        rivals = [limit.fast_enough(rival) for rival in rivals]
    evaluator, measure = _evaluators(bank, config, progress)
    _round(target, plans, rivals, bank, progress)
    if all(plan.space is None for plan in plans):
        return [_as_planned(plan) for plan in plans]

    measurements = _measurements(
        target, plans[0], evaluator, measure, bank, original, text.search, progress
    )
    candidates = _scored(plans, bank, config, measurements, progress)
    space = AllocationSpace.of(candidates, limit.seconds if limit else math.inf)
    capacities = {plan.label: plan.space.capacity for plan in plans if plan.space}
    if config.scores == "predicted" and len(text.interactions):
        space = _corrected(
            space, list(capacities.values()), text.interactions, original, bank, progress
        )

    exact = {label: solve(space, capacity) for label, capacity in capacities.items()}
    found = _searched(space, capacities, exact, config, measurements, progress)

    teacher = partial(_teacher, original, text.selection)
    decisions = []
    for plan, rival in zip(plans, rivals, strict=True):
        if plan.space is None:
            decisions.append(_as_planned(plan))
            continue
        named: dict[str, Allocation] = {config.method: space.allocation(found[plan.label])}
        named |= {"knapsack": space.allocation(exact[plan.label]), **rival}
        decision = _select(named, evaluator, teacher, len(text.selection))
        ranked = ", ".join(map(str, decision.rankings))
        progress.say(f"{plan.label}: on text that no search has read, {ranked}")
        if limit is not None:
            rate = limit.predicted(decision.allocation)
            progress.say(f"{plan.label}: {rate:.4g} tokens a second predicted")
        decisions.append(decision)
    return decisions


def _as_planned(plan: Plan) -> Decision:
    """The allocation of a plan that leaves nothing to decide."""
    return Decision(plan.allocation, "recipe", ())


def _largest_preset(plan: Plan, checkpoint: Checkpoint) -> Named:
    """The largest preset that is no larger than the planned file, by name; none may be.

    Matrices that have no choice, such as pinned ones, are as they have to be.
    """
    if plan.space is None:
        return {}
    sets = plan.space.candidate_sets
    fixed = {module: own[0].qtype for module, own in sets.items() if len(own) == 1}
    nbytes = cell_bytes(checkpoint, plan.target)
    sizes: dict[str, int] = {}
    found: dict[str, Allocation] = {}
    for name in presets.preset_names(plan.target.name):
        with suppress(UserError):  # a preset that this model's rows do not take
            found[name] = presets.preset(name, checkpoint, plan.target.name) | fixed
            sizes[name] = sum(nbytes(*cell) for cell in found[name].items())
    fitting = [name for name, size in sizes.items() if size <= plan.space.capacity]
    largest = max(fitting, key=lambda name: sizes[name], default=None)
    return {} if largest is None else {largest: found[largest]}


def _speed_limit(
    target: Target,
    plans: Sequence[Plan],
    rivals: Sequence[Named],
    checkpoint: Checkpoint,
    config: SearchConfig,
    progress: Progress,
) -> SpeedLimit | None:
    """The speed that files have to reach, with the seconds of every candidate."""
    if config.tokens_per_second is None:
        return None
    candidates = _candidates(plans, rivals, checkpoint)
    return speed_limit(config.tokens_per_second, checkpoint, target, candidates, progress)


def _candidates(
    plans: Sequence[Plan], rivals: Sequence[Named], checkpoint: Checkpoint
) -> dict[str, list[str]]:
    """Module path → the types that any of the files may have it on."""
    candidates: dict[str, dict[str, None]] = {module: {} for module in checkpoint.matrices}
    for plan in plans:
        for module, qtype in plan.allocation.items():
            names = plan.space.candidates[module] if plan.space else [qtype]
            candidates[module] |= dict.fromkeys(names)
    for rival in rivals:
        for allocation in rival.values():
            for module, qtype in allocation.items():
                candidates[module][qtype] = None
    return {module: list(names) for module, names in candidates.items()}


def _round(
    target: Target,
    plans: Sequence[Plan],
    rivals: Sequence[Named],
    bank: LayerBank,
    progress: Progress,
) -> None:
    """Have the bank round everything that any of the files may be made of."""
    candidates = _candidates(plans, rivals, bank.checkpoint)
    with progress.stage(f"Rounding for {target}", sum(map(len, candidates.values()))):
        round_layers(bank, candidates, progress)


def _evaluators(
    bank: LayerBank, config: SearchConfig, progress: Progress
) -> tuple[Evaluator, Evaluator | RayEvaluator]:
    """What measures allocations here, and what measures them for the search."""
    packed = sensitivity.with_originals(bank)
    here = Evaluator(bank.checkpoint, packed)
    if config.ray is None:
        return here, here
    return here, RayEvaluator(bank.checkpoint, packed, config.ray, here.precision, progress)


def _measurements(
    target: Target,
    plan: Plan,
    evaluator: Evaluator,
    measure: Evaluator | RayEvaluator,
    bank: LayerBank,
    original: OriginalModel,
    tokens: Tensor,
    progress: Progress,
) -> Measurements:
    """What the search measures on its text, remembered from earlier runs."""
    windows, window_tokens = tokens.shape
    evaluate = _on_text(evaluator, measure, original, tokens, plan.allocation, progress)
    history = History(history_path(bank.work.path, target.name, windows))
    return Measurements(evaluate, windows, Meter(window_tokens), history)


def _on_text(
    evaluator: Evaluator,
    measure: Evaluator | RayEvaluator,
    original: OriginalModel,
    tokens: Tensor,
    allocation: Allocation,
    progress: Progress,
) -> EvaluateAllocationsFn:
    """The evaluator on the text to search on, which the original reads when it is first needed.

    Where products of matrices are fast and rough, what that costs is said, for one allocation.
    """

    @cache
    def teacher() -> Teacher:
        with progress.stage("Reading text to search on", 1):
            read = original.on(tokens)
        if evaluator.precision != "highest":
            noise = evaluator.noise(read, allocation, [0])
            kind = PRODUCTS[evaluator.precision]
            progress.say(f"the search multiplies in {kind}, which moves KL by {noise:+.2%}")
        return read

    return lambda allocations, windows: measure(teacher(), allocations, windows)


def _scored(
    plans: Sequence[Plan],
    bank: LayerBank,
    config: SearchConfig,
    measurements: Measurements,
    progress: Progress,
) -> CandidateSets:
    """Everything that any of the files may choose, with its score."""
    together: dict[str, dict[str, Candidate]] = {module: {} for module in bank.checkpoint.matrices}
    for plan in plans:
        for module, own in plan.space.candidate_sets.items() if plan.space else ():
            together[module] |= {candidate.qtype: candidate for candidate in own}
    sets = {module: list(own.values()) for module, own in together.items()}
    if config.scores == "predicted":
        return sensitivity.predicted(bank, sets)
    with progress.stage("Measuring each matrix alone", sum(map(len, sets.values()))):
        return sensitivity.measured(sets, measurements, progress)


def _corrected(
    space: AllocationSpace,
    capacities: Sequence[int],
    tokens: Tensor,
    original: OriginalModel,
    bank: LayerBank,
    progress: Progress,
) -> AllocationSpace:
    """The space scored by what matrices cost beside the others; measured once, kept.

    Several budgets share the text that one has, but for the least that tells anything.
    """
    tokens = tokens[: max(LEAST_INTERACTIONS, len(tokens) // len(set(capacities)))]

    def attribution(allocation: Allocation) -> NDArray[np.float64]:
        name = f"attribution/{_key(tokens, allocation)}"
        if (known := bank.work.load_json(name)) is None:
            batches = math.ceil(len(tokens) / interactions.ATTRIBUTION_BATCH)
            with progress.stage("Measuring matrices together", batches + 1):
                teacher = original.on(tokens)
                progress.advance()
                known = interactions.kl_attribution(
                    bank.checkpoint, allocation, bank.packed, teacher, progress
                ).tolist()
            bank.work.save_json(name, known)
        return np.array(known)

    return interactions.corrected_scores(space, capacities, attribution)


def _key(tokens: Tensor, allocation: Allocation) -> str:
    """A name for a text, and an allocation on it."""
    digest = hashlib.sha256(tokens.numpy().tobytes())
    digest.update(json.dumps(list(allocation.items())).encode())
    return digest.hexdigest()[:16]


def _searched(
    space: AllocationSpace,
    capacities: Mapping[str, int],
    exact: Mapping[str, AllocationVector],
    config: SearchConfig,
    measurements: Measurements,
    progress: Progress,
) -> Mapping[str, AllocationVector]:
    """What the method finds for each file; the exact knapsack searches no further."""
    if config.method == "knapsack":
        return exact
    tokens = math.inf if config.tokens is None else config.tokens
    limits = Limits(tokens, math.inf if config.seconds is None else config.seconds)
    task = SearchTask(space, capacities, config.seed)
    return run_search(config.method, task, measurements, limits, progress)


def _teacher(original: OriginalModel, tokens: Tensor, windows: range) -> Teacher:
    """The original on some of the text that decides; no more of it is read than is asked for."""
    return original.on(tokens[windows.start : windows.stop])


def _select(
    named: Named,
    evaluator: Callable[[Teacher, Sequence[Allocation], Sequence[int]], NDArray[np.float32]],
    teacher: Callable[[range], Teacher],
    windows: int,
) -> Decision:
    """The best allocation on held-out text, of which no more is read than it takes."""
    allocations, samples = list(named.values()), np.empty((len(named), 0))
    read = 0
    clear = False
    while read < windows and not clear:
        further = range(read, min(windows, max(2 * read, FIRST_RANKED)))
        kl = by_segment(evaluator(teacher(further), allocations, range(len(further))))
        samples = np.concatenate([samples, kl.reshape(len(allocations), -1)], 1)
        read = further.stop
        rankings = rank(dict(zip(named, samples, strict=True)))
        clear = all(one.behind.low > 0 or not one.behind.error for one in rankings[1:])
    best = rankings[0].name
    return Decision(named[best], best, tuple(rankings))
