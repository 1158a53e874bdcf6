"""Three ways to learn what candidates cost and to have those that are chosen.

A model that a search measures many mixes of has every candidate in its bank
(:class:`BankRounder`). For a larger one that takes hours on a CPU, so that a few rows of each
matrix tell what its candidates cost, and what was chosen is rounded and polished
(:class:`EstimatingRounder`). Where reading the calibration text again takes less than keeping the
statistics, on a GPU, :class:`TwoPassRounder` does so: it estimates as the first pass comes back
through a block, and rounds as the second does (docs/decisions/two-passes.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from bitquilt.calibration.collect import collection_work
from bitquilt.qtypes.qtype import Allocation
from bitquilt.rounding import kernels
from bitquilt.rounding.layer_bank import ESTIMATED, Candidates, LayerBank
from bitquilt.rounding.round_layers import (
    estimate_layers,
    finish_layers,
    finishing_work,
    polish_layers,
    polishing_work,
    round_layers,
    rounding_work,
)
from bitquilt.rounding.text_pass import BlockStep, TextPass
from bitquilt.rounding.text_readers import TextReaders
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

    @property
    def settles(self) -> bool:
        """Whether candidates go once the files of a format are decided."""

    def settle(self, mixes: Sequence[Allocation], target: str) -> None:
        """Let the bank have the mixes of a format as files are to have them, and nothing else."""


@dataclass(frozen=True)
class BankRounder:
    """Rounds every candidate, from statistics that are kept."""

    bank: LayerBank
    progress: Progress
    settles: bool = False
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

    def settle(self, mixes: Sequence[Allocation], target: str) -> None:
        """Polish them, and remove the candidates; round them first where these are gone."""
        lacking = self.bank.lacks(mixes)
        if rounding_work(self.bank, lacking):
            self.score(lacking, target)
        for mix in mixes:
            polish_mix(self.bank, mix, target, self.progress)
        self.bank.keep_only(mixes)


@dataclass(frozen=True)
class EstimatingRounder:
    """Estimates every candidate and rounds what is chosen, from statistics that are kept."""

    bank: LayerBank
    progress: Progress
    complete = settles = False

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

    def settle(self, mixes: Sequence[Allocation], target: str) -> None:
        """Do nothing: nothing else is there."""


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
    readers: TextReaders
    """The processes that read."""
    progress: Progress
    complete = settles = False

    def __post_init__(self) -> None:
        kernels.start_compiling()

    def score(self, candidates: Candidates, target: str) -> None:
        """Estimate those of all formats, the first time."""
        if _estimating_work(self.bank, self.everything):
            title = "Reading calibration text, estimating types"
            self._pass(title, "calibration", self.everything, _estimating_work, estimate_layers)

    def make(self, chosen: Candidates, target: str) -> None:
        """Round and polish them."""
        if finishing_work(self.bank, chosen):
            title = f"Reading it again, rounding for {target}"
            self._pass(title, "rounding", chosen, finishing_work, finish_layers)

    def settle(self, mixes: Sequence[Allocation], target: str) -> None:
        """Do nothing: nothing else is there."""

    def _pass(
        self,
        title: str,
        kind: str,
        candidates: Candidates,
        work: Callable[[LayerBank, Candidates], float],
        step: BlockStep,
    ) -> None:
        """Read the text, and take a step with each block's candidates while its moments last."""
        windows = math.ceil(len(self.tokens) / self.readers.count)
        units = collection_work(self.bank.checkpoint, windows)
        with self.progress.stage(title, units, kind):
            task = TextPass(self.tokens, self.folds, candidates, work, step)
            self.readers.read(task, self.progress, _Words(self.progress))


def polish_mix(bank: LayerBank, mix: Allocation, target: str, progress: Progress) -> None:
    """Bring what a file consists of to the rounding that the bank is for, where it is not yet."""
    chosen = {module: [qtype] for module, qtype in mix.items()}
    if work := polishing_work(bank, chosen):
        with progress.stage(f"Polishing for {target}", work, "polishing"):
            polish_layers(bank, chosen, progress)


def _estimating_work(bank: LayerBank, candidates: Candidates) -> float:
    """Return what is left to estimate."""
    return rounding_work(bank, candidates, ESTIMATED)


class _Words(Progress):
    """Passes sentences on; units of work are those of the pass."""

    def __init__(self, to: Progress) -> None:
        super().__init__()
        self._to = to

    def say(self, line: str) -> None:
        self._to.say(line)
