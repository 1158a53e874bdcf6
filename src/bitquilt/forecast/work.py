"""What there is to do in one run, and what of it a work directory has already."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bitquilt.allocation.allocate import DECIDED
from bitquilt.allocation.plan import Plan, candidate_types, largest_preset
from bitquilt.calibration.text_budget import LEAST_INTERACTIONS, TextBudget
from bitquilt.config import AllocationConfig, QuantizeConfig, SearchConfig
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Allocation
from bitquilt.rounding.layer_bank import POLISHED, ROUNDED
from bitquilt.rounding.tuning.distill import DEFAULT_SCHEDULE
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.files import read_json
from bitquilt.runtime.workdir import WorkDir
from bitquilt.targets import Target

ESTIMATED_FROM = 512_000_000
"""Weights from which on candidates of a model whose mixes no search measures are estimated."""


@dataclass(frozen=True, kw_only=True)
class RunWork:
    """One run: what is asked for, and the directory that it works in."""

    checkpoint: Checkpoint
    plans: list[Plan]
    config: AllocationConfig
    budget: TextBudget
    search: SearchConfig
    """How to search, with the tokens that this machine has time for."""
    closing: int
    """Windows of the closing figures, of both kinds of held-out text."""
    afresh: bool = False
    """Whether the work directory is taken to be empty."""

    @property
    def work_dir(self) -> Path:
        """Where the stages keep their results."""
        return self.config.work_directory(self.checkpoint.name)

    @property
    def quantizing(self) -> QuantizeConfig | None:
        """The config where files are written; None where there will be recipes only."""
        return self.config if isinstance(self.config, QuantizeConfig) else None

    @property
    def estimates(self) -> bool:
        """Whether a few rows tell what candidates cost, so that only what is chosen is rounded.

        A search, and the sequential correction, need all candidates; so do matrices that files
        give, which are beside ours in the bank.
        """
        search = self.search
        planned = search.method == "knapsack" and search.scores == "predicted"
        banked = bool(self.corrected or self.config.cells)
        return planned and not banked and self._large

    @property
    def corrected(self) -> list[Plan]:
        """The files whose blocks are rounded again for those before them."""
        return [plan for plan in self.plans if self.quantizing and plan.sequential]

    @property
    def forgets(self) -> bool:
        """Whether rounded matrices go as soon as no file needs them.

        A search for recipes keeps them for the files.
        """
        quantizing = self.quantizing
        return quantizing is not None and not quantizing.keep_work and self._large

    @property
    def _large(self) -> bool:
        return self.checkpoint.weights >= ESTIMATED_FROM

    @property
    def selects(self) -> bool:
        """Whether mixes are measured on text that decides between them."""
        return not self.estimates and any(plan.space for plan in self.plans)

    @property
    def two_passes(self) -> bool:
        """Whether the text is read twice, so that no statistics are kept: on a GPU.

        A CPU takes longer to read the text again than a disk to keep them.
        """
        return self.estimates and compute_device().type != "cpu"

    @property
    def targets(self) -> list[Target]:
        """The formats, in the order in which they are decided."""
        return list(dict.fromkeys(plan.target for plan in self.plans))

    def of(self, target: Target) -> list[Plan]:
        """The planned files of one format."""
        return [plan for plan in self.plans if plan.target is target]

    @cached_property
    def candidates(self) -> Mapping[str, Mapping[str, list[str]]]:
        """Format → matrix → types that it is rounded to."""
        found = {}
        for target in self.targets:
            plans = self.of(target)
            rivals = [largest_preset(plan, self.checkpoint) for plan in plans]
            found[target.name] = candidate_types(plans, rivals, self.checkpoint)
        return found

    @property
    def everything(self) -> Mapping[str, list[str]]:
        """Matrix → types that it is rounded to for any format."""
        found: dict[str, list[str]] = {module: [] for module in self.checkpoint.matrices}
        for candidates in self.candidates.values():
            for module, names in candidates.items():
                found[module] += [name for name in names if name not in found[module]]
        return found

    def to_round(self, target: Target) -> Iterator[tuple[str, str]]:
        """Yield (matrix, type) that neither an earlier run nor an earlier format has rounded."""
        if decided := self.decided(target):
            for module, name in dict.fromkeys(cell for mix in decided for cell in mix.items()):
                if f"{module}/{name}" not in self.polished | self._rounded:
                    yield module, name
            return
        earlier = [self.candidates[t.name] for t in self.targets[: self.targets.index(target)]]
        for module, names in self.candidates[target.name].items():
            for name in names:
                if f"{module}/{name}" not in self._rounded and not any(
                    name in own[module] for own in earlier
                ):
                    yield module, name

    def made(self, target: Target) -> Iterator[tuple[str, str]]:
        """Yield (matrix, type) of the mixes of a format that are read at the end of the search.

        Without a race that is the planned mix of every file, about, and the largest preset where
        it is measured.
        """
        plans, rivals = self.of(target), list[Allocation]()
        if not self.estimates:
            rivals = [own for p in plans for own in largest_preset(p, self.checkpoint).values()]
        mixes = [*(plan.allocation for plan in plans), *rivals]
        for module in self.checkpoint.matrices:
            yield from ((module, name) for name in {mix[module] for mix in mixes})

    def weights(self, module: str) -> int:
        """The number of a matrix's weights."""
        return math.prod(self.checkpoint.matrices[module])

    @property
    def collected(self) -> bool:
        """Whether the calibration text has been read."""
        return self.has("gradients")

    def capacities(self, target: Target) -> int:
        """How many different sizes of a format are searched for."""
        return len({plan.space.capacity for plan in self.of(target) if plan.space})

    def interactions(self, target: Target) -> int:
        """Windows that each of them measures its interactions on."""
        several, windows = self.capacities(target), self.budget.interactions
        if not several or not windows or self.search.method != "race":
            return 0
        return (
            0 if self.search.scores == "measured" else max(LEAST_INTERACTIONS, windows // several)
        )

    @property
    def tokens(self) -> dict[str, int]:
        """Stage → tokens that it reads, for people; stages that read none are left out."""
        budget, quantizing, window = self.budget, self.quantizing, self.budget.window
        windows = Counter[str]()
        windows["calibration"] = budget.calibration
        for target in self.targets:
            windows["interactions"] += self.interactions(target) * self.capacities(target)
        tokens = {name: count * window for name, count in windows.items() if count}
        searched = sum(self.capacities(target) > 0 for target in self.targets)
        if searched and self.search.method != "knapsack" and self.search.tokens:
            tokens["search"] = searched * self.search.tokens
        if self.selects:
            tokens["selection"] = budget.selection * window
        if quantizing:
            tokens["closing figures"] = self.closing * window
        if self.corrected:
            tokens["sequential correction"] = len(self.corrected) * budget.calibration * window
        if quantizing and quantizing.tune:
            steps = DEFAULT_SCHEDULE.steps(budget.tuning) * DEFAULT_SCHEDULE.batch
            tokens["tuning"] = steps * window
        return tokens

    def has(self, name: str) -> bool:
        """Whether the work directory has an artefact."""
        return not self.afresh and (self.work_dir / f"{name}.safetensors").exists()

    def decided(self, target: Target) -> list[Allocation]:
        """List the mixes that an earlier run has decided, where it did not keep candidates."""
        labels = [plan.label for plan in self.of(target)]
        forgets = self.forgets and not self.estimates and not self.afresh
        for file in (self.work_dir / DECIDED / target.name).glob("*.json") if forgets else ():
            if (known := read_json(file))["labels"] == labels:
                return [one["allocation"] for one in known["decisions"]]
        return []

    @cached_property
    def _rounded(self) -> frozenset[str]:
        return self._in_bank(ROUNDED)

    @cached_property
    def polished(self) -> frozenset[str]:
        """``<matrix>/<type>`` of all that is there as files are to have it."""
        return self._in_bank(POLISHED)

    def _in_bank(self, folder: str) -> frozenset[str]:
        """Read ``<matrix>/<type>`` of all that is in a folder of the layer bank."""
        found: set[str] = set()
        if self.afresh:
            return frozenset()
        work = WorkDir.borrowed(self.work_dir)
        for file in (self.work_dir / folder).rglob("*.safetensors"):
            name = file.relative_to(self.work_dir).as_posix()
            found |= set(work.facts(name.removesuffix(".safetensors")))
        return frozenset(found)
