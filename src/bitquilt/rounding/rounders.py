"""Three ways to learn what candidates cost and to have those that are chosen.

A model that a search measures many mixes of has every candidate in its bank
(:class:`BankRounder`). For a larger one that takes hours on a CPU, so that a few rows of each
matrix tell what its candidates cost, and what was chosen is rounded and polished
(:class:`EstimatingRounder`). Where reading the calibration text again takes less than keeping the
statistics, on a GPU, :class:`TwoPassRounder` does so: it estimates as the first pass comes back
through a block, and rounds as the second does (docs/decisions/two-passes.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from bitquilt.calibration.block_moments import BlockMoments
from bitquilt.calibration.collect import collect_statistics, collection_work
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.models.names import layer_of
from bitquilt.rounding import kernels
from bitquilt.rounding.block_workers import BlockStep, BlockTask, BlockWorkers
from bitquilt.rounding.layer_bank import ESTIMATED, Candidates, LayerBank
from bitquilt.rounding.round_layers import (
    estimate_layers,
    finish_layers,
    finishing_work,
    round_layers,
    rounding_work,
)
from bitquilt.runtime.progress import Progress


class Rounder(Protocol):
    """Fills a bank as far as deciding, and then as far as the decision."""

    @property
    def complete(self) -> bool:
        """Whether the bank has every candidate that is scored, so that mixes can be measured."""

    def score(self, candidates: Candidates, target: str) -> None:
        """Let the bank know what each candidate of a format is predicted to cost."""

    def make(self, chosen: Candidates, target: str) -> None:
        """Let the bank have what mixes of a format consist of."""

    def forget(self) -> None:
        """Give up what serves no other file than those that were written."""


@dataclass(frozen=True)
class BankRounder:
    """Rounds every candidate, from statistics that are kept."""

    bank: LayerBank
    progress: Progress
    complete = True

    def __post_init__(self) -> None:
        kernels.start_compiling()

    def score(self, candidates: Candidates, target: str) -> None:
        """Round all of them."""
        with self.progress.stage(
            f"Rounding for {target}", rounding_work(self.bank, candidates), "rounding"
        ):
            round_layers(self.bank, candidates, self.progress)

    def make(self, chosen: Candidates, target: str) -> None:
        """Do nothing: they are there."""

    def forget(self) -> None:
        """Do nothing: other files choose from the same candidates."""


@dataclass(frozen=True)
class EstimatingRounder:
    """Estimates every candidate and rounds what is chosen, from statistics that are kept."""

    bank: LayerBank
    progress: Progress
    complete = False

    def score(self, candidates: Candidates, target: str) -> None:
        """Estimate all of them."""
        work = rounding_work(self.bank, candidates, ESTIMATED)
        with self.progress.stage(f"Estimating types for {target}", work, "rounding"):
            estimate_layers(self.bank, candidates, self.progress)

    def make(self, chosen: Candidates, target: str) -> None:
        """Round and polish them."""
        work = finishing_work(self.bank, chosen)
        with self.progress.stage(f"Rounding for {target}", work, "rounding"):
            finish_layers(self.bank, chosen, self.progress)

    def forget(self) -> None:
        """Remove the matrices; estimates and statistics stay."""
        self.bank.forget_matrices()


@dataclass(frozen=True)
class TwoPassRounder:
    """Estimates every candidate in one pass over the calibration text, and rounds in another."""

    bank: LayerBank
    tokens: Tensor
    """int64 [N, L]."""
    folds: Tensor
    """The fold of each window, int64 [N]."""
    everything: Candidates
    """The candidates of all formats: one pass serves them."""
    workers: BlockWorkers
    """They round what blocks they have time for, and this process the others."""
    progress: Progress
    complete = False

    def __post_init__(self) -> None:
        kernels.start_compiling()

    def score(self, candidates: Candidates, target: str) -> None:
        """Estimate those of all formats, the first time."""

        def work(bank: LayerBank, own: Candidates) -> float:
            return rounding_work(bank, own, ESTIMATED)

        if work(self.bank, self.everything):
            title = "Reading calibration text, estimating types"
            self._pass(title, "calibration", self.everything, work, estimate_layers)

    def make(self, chosen: Candidates, target: str) -> None:
        """Round and polish them."""
        if finishing_work(self.bank, chosen):
            title = f"Reading it again, rounding for {target}"
            self._pass(title, "rounding", chosen, finishing_work, finish_layers)

    def forget(self) -> None:
        """Remove the matrices; estimates stay."""
        self.bank.forget_matrices()

    def _pass(
        self,
        title: str,
        kind: str,
        candidates: Candidates,
        work: Callable[[LayerBank, Candidates], float],
        step: BlockStep,
    ) -> None:
        """Read the text, and take a step with each block's candidates while its moments last."""
        bank, says = self.bank, _Words(self.progress)
        units = collection_work(bank.checkpoint, len(self.tokens))
        with self.progress.stage(title, units, kind):
            own = _by_layer(candidates)
            keeper = _Keeper(bank, own, work, step, says, self.workers)
            collect_statistics(
                BlockwiseModel(bank.checkpoint),
                self.tokens,
                self.folds,
                bank.work,
                self.progress,
                keeper,
            )
            step(bank, own[None], says)
            keeper.finish()


@dataclass(frozen=True)
class _Keeper:
    """Takes a step with each block, of which the bank has the moments as its statistics then."""

    bank: LayerBank
    candidates: Mapping[int | None, Candidates]
    work: Callable[[LayerBank, Candidates], float]
    """What a step has to do: 0 where an earlier run has done it."""
    step: BlockStep
    says: Progress
    workers: BlockWorkers

    def wants(self, layer: int) -> bool:
        return self.work(self.bank, self.candidates[layer]) > 0

    def keep(self, moments: BlockMoments) -> None:
        task = BlockTask(self.step, moments, self.candidates[moments.layer])
        self._here(self.workers.do(task))

    def finish(self) -> None:
        """Do what processes have not begun, and wait until the steps of all blocks are done."""
        self._here(self.workers.take_back())
        self._here(self.workers.wait())

    def _here(self, tasks: Iterable[BlockTask]) -> None:
        """Do tasks in this process."""
        for task in tasks:
            task.do(self.bank, self.says)


class _Words(Progress):
    """Passes sentences on; units of work are those of the pass."""

    def __init__(self, to: Progress) -> None:
        super().__init__()
        self._to = to

    def say(self, line: str) -> None:
        self._to.say(line)


def _by_layer(candidates: Candidates) -> dict[int | None, dict[str, Sequence[str]]]:
    """Return layer → its candidates; those of tables are under None."""
    found: dict[int | None, dict[str, Sequence[str]]] = {None: {}}
    for module, names in candidates.items():
        found.setdefault(layer_of(module), {})[module] = names
    return found
