"""From plans to mixes: candidates rounded, scored, searched, and judged on text no search has read.

The files of one target are decided together: one bank, one set of scores, one history, and what a
search learns at one size serves the others. Three mixes then stand to be judged for each file: what
the search found, the exact knapsack on the scores, and the largest preset that is no larger. The
best one is used; which text says so is neither what the search read nor what the closing figures
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

from bitquilt.allocation import SCORES, SEARCH_METHODS, interactions, presets, sensitivity
from bitquilt.allocation.evaluator import PRODUCTS, Evaluator
from bitquilt.allocation.history import History, history_path
from bitquilt.allocation.measurements import Measurements
from bitquilt.allocation.meter import Limits, Meter
from bitquilt.allocation.plan import Plan, Space, cell_bytes
from bitquilt.allocation.racing import by_segment
from bitquilt.allocation.ray_evaluator import RayEvaluator
from bitquilt.allocation.searching import SearchTask, run_search
from bitquilt.allocation.selection import Ranking, rank
from bitquilt.allocation.solver import solve
from bitquilt.allocation.space import AllocationSpace, Candidate, CandidateSets
from bitquilt.allocation.speed_profile import speed_limit
from bitquilt.calibration.text_budget import LEAST_IN_COMPANY
from bitquilt.errors import UserError
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import Teacher
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.rounding.round_layers import round_layers
from bitquilt.runtime.progress import Progress
from bitquilt.targets import Target

EVOPRESS_WINDOWS = 512
"""262,144 tokens."""
FIRST_JUDGED = 4
"""Windows after which mixes are judged for the first time, and then at twice as many."""


@dataclass(frozen=True)
class Search:
    """How to search."""

    method: str = "race"
    """One of :data:`bitquilt.allocation.SEARCH_METHODS`."""
    scores: str = "predicted"
    """One of :data:`bitquilt.allocation.SCORES`."""
    tokens: float | None = None
    """Token-forwards that the search may take; if not given, as many as the model's size allows."""
    seconds: float = math.inf
    """That it may take."""
    seed: int = 0
    tokens_per_second: float | None = None
    """That every file has to reach on this machine, one answer at a time."""
    ray: str | None = None
    """Address of a Ray cluster whose machines measure; if empty, the one at hand or a new one."""

    def __post_init__(self) -> None:
        """Refuse what there is not."""
        asked = (self.method, SEARCH_METHODS, "search"), (self.scores, SCORES, "sort of scores")
        for name, known, what in asked:
            if name not in known:
                raise UserError(f"there is no {what} {name!r}; choose one of {', '.join(known)}")
        if self.method == "evopress" and self.tokens_per_second is not None:
            raise UserError(
                "EvoPress knows no limit of speed; with --min-tokens-per-second give --search "
                "race or knapsack"
            )

    def limited(self, tokens: int) -> Search:
        """With that many tokens unless others were asked for; EvoPress has its own schedule."""
        usual = math.inf if self.method == "evopress" else tokens
        return replace(self, tokens=usual if self.tokens is None else self.tokens)

    @property
    def limits(self) -> Limits:
        """Where it ends at the latest."""
        return Limits(math.inf if self.tokens is None else self.tokens, self.seconds)

    def windows(self, usual: int) -> int:
        """Windows of text to measure on: EvoPress draws from as many as its authors'."""
        return EVOPRESS_WINDOWS if self.method == "evopress" else usual


@dataclass(frozen=True)
class Text:
    """Windows of tokens for what is decided here, each int64 [N, L], and the model on them."""

    original: OriginalModel
    """Reads them when they are needed."""
    company: Tensor
    """Calibration text that says what matrices cost together; none where there is no time."""
    search: Tensor
    """Calibration text that mixes are measured on."""
    judging: Tensor
    """Held-out text that decides between the mixes."""


class Decision(NamedTuple):
    """The mix of one file."""

    mix: Mapping[str, str]
    """Module path → type name."""
    name: str
    """Of the verdict that it won; ``recipe`` where there was nothing to decide."""
    verdicts: tuple[Ranking, ...]


def decide(
    plans: Sequence[Plan], bank: LayerBank, text: Text, how: Search, progress: Progress
) -> list[Decision]:
    """Round the candidates of all planned files, and decide the mix of each."""
    by_target = {plan.target: [p for p in plans if p.target == plan.target] for plan in plans}
    decided = {
        target: iter(_decide_target(target, own, bank, text, how, progress))
        for target, own in by_target.items()
    }
    return [next(decided[plan.target]) for plan in plans]


def _decide_target(
    target: Target,
    plans: Sequence[Plan],
    bank: LayerBank,
    text: Text,
    how: Search,
    progress: Progress,
) -> list[Decision]:
    """The same for one target."""
    rivals = [_preset(plan, bank.checkpoint) if plan.space else {} for plan in plans]
    limit = None
    if how.tokens_per_second is not None:
        rival_mixes = [mix for rival in rivals for mix in rival.values()]
        candidates = _candidates(plans, rival_mixes, bank.checkpoint)
        limit = speed_limit(how.tokens_per_second, bank.checkpoint, target, candidates, progress)
        plans = [limit.timed(plan) for plan in plans]
        rivals = [limit.fast_enough(rival) for rival in rivals]
    packed = sensitivity.with_originals(bank)
    evaluator = Evaluator(bank.checkpoint, packed)
    measure: Evaluator | RayEvaluator = evaluator
    if how.ray is not None:
        measure = RayEvaluator(bank.checkpoint, packed, how.ray, evaluator.precision, progress)
    _round(target, plans, [mix for rival in rivals for mix in rival.values()], bank, progress)
    spaces = {plan.label: plan.space for plan in plans if plan.space}
    if not spaces:
        return [Decision(plan.allocation, "recipe", ()) for plan in plans]
    evaluate = _on_text(evaluator, measure, text, plans[0].allocation, progress)
    windows, window_tokens = text.search.shape
    history = History(history_path(bank.work.path, target.name, windows))
    measurements = Measurements(evaluate, windows, Meter(window_tokens), history)
    scored = _scored(spaces, bank, how, measurements, progress)
    searched = AllocationSpace.of(scored, limit.seconds if limit else math.inf)
    capacities = {label: space.capacity for label, space in spaces.items()}
    if how.scores == "predicted" and len(text.company):
        searched = _together(searched, list(capacities.values()), text, bank, progress)
    exact = best = {label: solve(searched, capacity) for label, capacity in capacities.items()}
    if how.method != "knapsack":
        task = SearchTask(searched, capacities, how.seed)
        best = run_search(how.method, task, measurements, how.limits, progress)
    judging = partial(_judging, text.original, text.judging)
    decisions = []
    for plan, rival in zip(plans, rivals, strict=True):
        if not plan.space:
            decisions.append(Decision(plan.allocation, "recipe", ()))
            continue
        standing: dict[str, Mapping[str, str]] = {how.method: searched.allocation(best[plan.label])}
        standing |= {"knapsack": searched.allocation(exact[plan.label]), **rival}
        decisions.append(_judged(standing, evaluator, judging, len(text.judging)))
        verdicts = ", ".join(map(str, decisions[-1].verdicts))
        progress.say(f"{plan.label}: on text that no search has read, {verdicts}")
        if limit:
            rate = limit.predicted(decisions[-1].mix)
            progress.say(f"{plan.label}: {rate:.4g} tokens a second predicted")
    return decisions


def _preset(plan: Plan, checkpoint: Checkpoint) -> dict[str, Mapping[str, str]]:
    """The largest preset that is no larger than the planned file, by name; none may be.

    Matrices that have no choice, pinned ones say, are as they have to be.
    """
    assert plan.space is not None
    fixed = {m: own[0].qtype for m, own in plan.space.candidate_sets.items() if len(own) == 1}
    nbytes = cell_bytes(checkpoint, plan.target)
    found: dict[str, tuple[int, Mapping[str, str]]] = {}
    for name in presets.preset_names(plan.target.name):
        with suppress(UserError):  # a preset that this model's rows do not take
            mix = presets.preset(name, checkpoint, plan.target.name) | fixed
            found[name] = sum(nbytes(*cell) for cell in mix.items()), mix
    fitting = {name: size for name, (size, _) in found.items() if size <= plan.space.capacity}
    largest = max(fitting, key=lambda name: fitting[name], default=None)
    return {} if largest is None else {largest: found[largest][1]}


def _candidates(
    plans: Sequence[Plan], rivals: Sequence[Mapping[str, str]], checkpoint: Checkpoint
) -> dict[str, dict[str, None]]:
    """Module path → the types that any of the files may have it on."""
    candidates: dict[str, dict[str, None]] = {module: {} for module in checkpoint.matrices}
    for plan in plans:
        for module, qtype in plan.allocation.items():
            names = plan.space.candidates[module] if plan.space else [qtype]
            candidates[module] |= dict.fromkeys(names)
    for mix in rivals:
        for module, qtype in mix.items():
            candidates[module][qtype] = None
    return candidates


def _round(
    target: Target,
    plans: Sequence[Plan],
    rivals: Sequence[Mapping[str, str]],
    bank: LayerBank,
    progress: Progress,
) -> None:
    """Have the bank round everything that any of the files may be made of."""
    candidates = _candidates(plans, rivals, bank.checkpoint)
    with progress.stage(f"Rounding for {target}", sum(map(len, candidates.values()))):
        round_layers(bank, {module: list(names) for module, names in candidates.items()}, progress)


def _on_text(
    evaluator: Evaluator,
    measure: Evaluator | RayEvaluator,
    text: Text,
    mix: Mapping[str, str],
    progress: Progress,
) -> Callable[[Sequence[Mapping[str, str]], Sequence[int]], NDArray[np.float32]]:
    """The evaluator on the text to search on, which the original reads when it is first needed.

    Where products of matrices are fast and rough, what that costs is said, for one mix.
    """

    @cache
    def teacher() -> Teacher:
        with progress.stage("Reading text to search on", 1):
            made = text.original.on(text.search)
            progress.advance()
        if evaluator.precision != "highest":
            noise = evaluator.noise(made, mix, [0])
            kind = PRODUCTS[evaluator.precision]
            progress.say(f"the search multiplies in {kind}, which moves KL by {noise:+.2%}")
        return made

    return lambda mixes, windows: measure(teacher(), mixes, windows)


def _scored(
    spaces: Mapping[str, Space],
    bank: LayerBank,
    how: Search,
    measurements: Measurements,
    progress: Progress,
) -> CandidateSets:
    """Everything that any of the files may choose, with its score."""
    together: dict[str, dict[str, Candidate]] = {module: {} for module in bank.checkpoint.matrices}
    for space in spaces.values():
        for module, choices in space.candidate_sets.items():
            together[module] |= {choice.qtype: choice for choice in choices}
    menu = {module: list(choices.values()) for module, choices in together.items()}
    if how.scores == "measured":
        with progress.stage("Measuring each matrix alone", sum(map(len, menu.values()))):
            return sensitivity.measured(menu, measurements, progress)
    return sensitivity.predicted(bank, menu)


def _together(
    space: AllocationSpace,
    capacities: Sequence[int],
    text: Text,
    bank: LayerBank,
    progress: Progress,
) -> AllocationSpace:
    """The mixes scored by what matrices cost in the company of the others; measured once, kept.

    Several budgets share the text that one has, but for the least that tells anything.
    """
    tokens = text.company[: max(LEAST_IN_COMPANY, len(text.company) // len(set(capacities)))]

    def shares(mix: Mapping[str, str]) -> NDArray[np.float64]:
        name = f"shares/{_key(tokens, mix)}"
        if (known := bank.work.load_json(name)) is None:
            batches = math.ceil(len(tokens) / interactions.ATTRIBUTION_BATCH)
            with progress.stage("Measuring matrices in company", batches + 1):
                teacher = text.original.on(tokens)
                progress.advance()
                known = interactions.kl_attribution(
                    bank.checkpoint, mix, bank.packed, teacher, progress
                ).tolist()
            bank.work.save_json(name, known)
        return np.array(known)

    return interactions.corrected_scores(space, capacities, shares)


def _key(tokens: Tensor, mix: Mapping[str, str] | None = None) -> str:
    """A name for a text, and a mix on it."""
    digest = hashlib.sha256(tokens.numpy().tobytes())
    digest.update(json.dumps(list((mix or {}).items())).encode())
    return digest.hexdigest()[:16]


def _judging(original: OriginalModel, tokens: Tensor, windows: range) -> Teacher:
    """The original on some of the text that decides; no more of it is read than is asked for."""
    return original.on(tokens[windows.start : windows.stop])


def _judged(
    standing: Mapping[str, Mapping[str, str]],
    evaluator: Evaluator,
    teacher: Callable[[range], Teacher],
    there: int,
) -> Decision:
    """The best of the mixes on held-out text, of which no more is read than it takes."""
    mixes, samples = list(standing.values()), np.empty((len(standing), 0))
    read = 0
    clear = False
    while read < there and not clear:
        further = range(read, min(there, max(2 * read, FIRST_JUDGED)))
        own = by_segment(evaluator(teacher(further), mixes, range(len(further))))
        kl = own.reshape(len(mixes), -1)
        samples, read = np.concatenate([samples, kl], 1), further.stop
        verdicts = rank(dict(zip(standing, samples, strict=True)))
        clear = all(one.behind.low > 0 or not one.behind.error for one in verdicts[1:])
    return Decision(standing[verdicts[0].name], verdicts[0].name, tuple(verdicts))
