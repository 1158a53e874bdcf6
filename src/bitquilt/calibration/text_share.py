"""Several processes read the calibration text, each a share of it, and add up what they summed.

All go through the same blocks. One process, in turn, gets the sums of a block from the others and
has its moments then. Whoever has no such block reads on instead of waiting, as far as memory
allows. Sums are not copied on the way: a process maps the memory of another, and says when it has
added what is there.

Letters: N windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.multiprocessing  # with it, connections pass tensors
from torch import Tensor

from bitquilt.calibration.block_moments import BlockSums
from bitquilt.runtime.device import gpu_memory

WAITING_SHARE = 8
"""Sums that wait for other processes take this part of a GPU's memory, or are of one block."""


class LostProcessError(Exception):
    """A process that reads a share of the text is no longer there."""


@dataclass(frozen=True)
class TextShare:
    """The part of the text that this process reads: all of it, where there are no links."""

    number: int = 0
    """Of this process."""
    links: Mapping[int, Connection[Any, Any]] = field(default_factory=dict)
    """Number of another process → connection to it."""

    @property
    def count(self) -> int:
        """How many processes read."""
        return 1 + len(self.links)

    def windows(self, of: int) -> int:
        """Return how many of so many windows this process reads."""
        return len(range(self.number, of, self.count))

    def parts(self, order: Tensor) -> list[Tensor]:
        """Deal out windows, int64 [N]: this process's own first, then by the others' numbers."""
        return [order[number :: self.count] for number in (self.number, *sorted(self.links))]


@dataclass(frozen=True)
class AddedSums:
    """Says that the sums of a block have been added, and need not be kept any longer."""

    layer: int


@dataclass(frozen=True)
class SavedTotals:
    """Says that what is summed over the whole text is in the work directory."""


class SumExchange:
    """Brings what processes summed together, in one pass."""

    def __init__(self, share: TextShare) -> None:
        self._share = share
        self._own: dict[int, BlockSums] = {}  # of blocks whose moments this process is to have
        self._given: dict[int, BlockSums] = {}  # of blocks that another has not added yet
        self._theirs: dict[tuple[int, int], BlockSums] = {}  # (layer, process), in its memory
        self._totals: dict[int, dict[str, Tensor]] = {}
        self._saved = False

    def give(self, sums: BlockSums) -> None:
        """Take what this process summed of a block, which nobody changes any more."""
        owner = sums.layer % self._share.count
        if owner == self._share.number:
            self._own[sums.layer] = sums
            return
        _settle()
        self._given[sums.layer] = sums
        self._send(owner, sums)

    def whole(self, *, to_the_end: bool = False) -> Iterator[BlockSums]:
        """Yield the sums of this process's blocks that all have read.

        Args:
            to_the_end: wait until nothing is left; else only while too much is in memory.

        Raises:
            LostProcessError: another process has died.
        """
        while True:
            self._receive(patient=False)
            if (layer := self._complete()) is not None:
                yield self._added(layer)
            elif self._waiting_is_too_much(to_the_end):
                self._receive(patient=True)
            else:
                return

    def give_totals(self, totals: dict[str, Tensor]) -> None:
        """Take this process's part of what is summed over the whole text, on the CPU."""
        if self._share.number == 0:
            self._totals[0] = totals
        else:
            self._send(0, totals)

    def totals(self) -> dict[str, Tensor]:
        """Return, in the first process, the sums of all parts.

        Raises:
            LostProcessError: another process has died.
        """
        while len(self._totals) < self._share.count:
            self._receive(patient=True)
        total = self._totals[0]
        for number in sorted(self._share.links):
            total = {name: own + self._totals[number][name] for name, own in total.items()}
        return total

    def say_saved(self) -> None:
        """Tell the others, in the first process, that the totals are saved."""
        self._saved = True
        for number in self._share.links:
            self._send(number, SavedTotals())

    def wait_until_saved(self) -> None:
        """Return when the totals are in the work directory.

        Raises:
            LostProcessError: another process has died.
        """
        while not self._saved:
            self._receive(patient=True)

    def _complete(self) -> int | None:
        """Return the first block of this process that all have read."""
        for layer in self._own:
            if all((layer, number) in self._theirs for number in self._share.links):
                return layer
        return None

    def _added(self, layer: int) -> BlockSums:
        """Add what the others summed of a block to what this process did."""
        own = self._own.pop(layer)
        for number in sorted(self._share.links):  # in one order, so that the bytes are the same
            own.join(self._theirs.pop((layer, number)))
            _settle()
            self._send(number, AddedSums(layer))
        return own

    def _waiting_is_too_much(self, to_the_end: bool) -> bool:
        """Tell whether to wait for others before this process reads another block."""
        waiting = [*self._own.values(), *self._given.values()]
        if to_the_end or len(waiting) < 2:
            return to_the_end and bool(waiting)
        return sum(sums.nbytes for sums in waiting) > gpu_memory() // WAITING_SHARE

    def _send(
        self, number: int, message: BlockSums | AddedSums | SavedTotals | dict[str, Tensor]
    ) -> None:
        try:
            self._share.links[number].send(message)
        except OSError as error:
            raise LostProcessError from error

    def _receive(self, *, patient: bool) -> None:
        """Take what has come; wait for something if nothing has, where that is asked for."""
        links = self._share.links
        ready = wait(list(links.values()), None if patient else 0) if links else []
        for number, link in links.items():
            if link not in ready:
                continue
            try:
                message = link.recv()
            except (EOFError, OSError) as error:
                raise LostProcessError from error
            if isinstance(message, AddedSums):
                del self._given[message.layer]
            elif isinstance(message, BlockSums):
                self._theirs[message.layer, number] = message
            elif isinstance(message, SavedTotals):
                self._saved = True
            else:
                self._totals[number] = message


def _settle() -> None:
    """Let the GPU end what it was asked for: other processes do not know of this one's streams."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
