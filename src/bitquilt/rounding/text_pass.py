"""A pass over the calibration text that takes a step with each block while its moments last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitquilt.calibration.block_moments import BlockMoments
from bitquilt.calibration.collect import collect_statistics
from bitquilt.calibration.statistics import BlockStats
from bitquilt.calibration.text_share import TextShare
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.models.names import layer_of
from bitquilt.rounding.layer_bank import Candidates, LayerBank
from bitquilt.runtime.products import multiplying
from bitquilt.runtime.progress import Progress

BlockStep = Callable[[LayerBank, Candidates, Progress], None]
"""What is done with a block's candidates; the bank has the block's statistics."""


@dataclass(frozen=True)
class TextPass:
    """What to read, and what to do with each block; all processes that read have the same."""

    tokens: Tensor
    """int64 [N, L]."""
    folds: Tensor
    """The fold of each window, int64 [N]."""
    candidates: Candidates
    work: Callable[[LayerBank, Candidates], float]
    """What a step has to do: 0 where an earlier run has done it."""
    step: BlockStep

    def read(self, bank: LayerBank, share: TextShare, progress: Progress, says: Progress) -> None:
        """Read a share of the text, and take the step with this process's blocks.

        Embedding and head are dealt out among the first two: neither needs the moments of a block.

        Args:
            bank: where results go.
            share: the part of the text that this process reads.
            progress: advances with the reading.
            says: told by the step what could not be done as usual.

        Raises:
            LostProcessError: another process that reads has died.
            UserError: a block cannot be rounded.
        """
        by_layer = _by_layer(self.candidates)
        keeper = _Keeper(bank, by_layer, self.work, self.step, says)
        model = BlockwiseModel(bank.checkpoint)
        collect_statistics(
            model, self.tokens, self.folds, bank.work, progress, keeper=keeper, share=share
        )
        tables = list(by_layer[None].items())
        self.step(bank, dict(tables[share.number :: share.count]), says)


@dataclass(frozen=True)
class _Keeper:
    """Takes a step with each block, of which the bank has the moments as its statistics then."""

    bank: LayerBank
    candidates: Mapping[int | None, Candidates]
    work: Callable[[LayerBank, Candidates], float]
    step: BlockStep
    says: Progress

    def wants(self, layer: int) -> bool:
        return self.work(self.bank, self.candidates[layer]) > 0

    @torch.no_grad()
    def keep(self, moments: BlockMoments) -> None:
        statistics = BlockStats(self.bank.checkpoint, self.bank.work, moments)
        with multiplying("highest"):  # passes over the text may multiply faster and rougher
            self.step(self.bank.reading(statistics), self.candidates[moments.layer], self.says)


def _by_layer(candidates: Candidates) -> dict[int | None, dict[str, Sequence[str]]]:
    """Return layer → its candidates; those of tables are under None."""
    found: dict[int | None, dict[str, Sequence[str]]] = {None: {}}
    for module, names in candidates.items():
        found.setdefault(layer_of(module), {})[module] = names
    return found
