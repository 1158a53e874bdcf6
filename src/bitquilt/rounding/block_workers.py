"""Blocks that are rounded on the other GPUs of this host, while the first one reads the next.

A block's matrices need nothing but its moments and its weights, so that blocks go to whichever GPU
has fewest, and the first does itself what would have to wait. Each of the others has a process of
its own: how fast and how roughly torch multiplies is a setting of a whole process, and Python
launches kernels from one thread at a time. Moments are not copied on the way: a process maps the
memory of another. What the processes make goes into one work directory.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from queue import SimpleQueue
from typing import Any

import torch
import torch.multiprocessing  # with it, connections pass tensors of a GPU
from torch import Tensor

from bitquilt.calibration.block_moments import BlockMoments
from bitquilt.calibration.statistics import BlockStats
from bitquilt.errors import UserError
from bitquilt.rounding.layer_bank import Candidates, LayerBank
from bitquilt.runtime.compute import asked_threads
from bitquilt.runtime.products import multiplying
from bitquilt.runtime.progress import Progress

MOST_GIVEN = 2
"""Tasks that a process has at most: one that it is at, and one that it need not wait for."""
DIES_WITHIN = 10
"""Seconds that an idle process is given to end by itself."""

BlockStep = Callable[[LayerBank, Candidates, Progress], None]
"""What is done with a block's candidates; the bank has the block's statistics."""


@dataclass(frozen=True)
class WorkerSetup:
    """What a process works on, the first message to it."""

    model: str
    """The reference that the checkpoint is opened by."""
    bank: tuple[str, str]
    """Its work directory, and the method of rounding."""
    device: str
    """As torch names it."""
    threads: int | None


@dataclass(frozen=True)
class BlockTask:
    """What to do for one block."""

    step: BlockStep
    moments: BlockMoments
    candidates: Candidates

    @torch.no_grad()
    def do(self, bank: LayerBank, says: Progress) -> None:
        """Take the step in this process."""
        statistics = BlockStats(bank.checkpoint, bank.work, self.moments)
        with multiplying("highest"):  # passes over the text may multiply faster and rougher
            self.step(bank.reading(statistics), self.candidates, says)


@dataclass(frozen=True)
class WorkerAnswer:
    """What a process has to say: a line, or why it failed, or with neither that a task is done."""

    line: str = ""
    failed: str = ""


def passable(moments: BlockMoments, convert: Callable[[Any], Any]) -> BlockMoments:
    """Return moments with every tensor converted.

    A tensor of the CPU is passed as an array, since torch would pass it as a file that a process
    of another family may not open.
    """

    def each(tensors: dict[str, Tensor]) -> dict[str, Any]:
        return {name: convert(numbers) for name, numbers in tensors.items()}

    return replace(
        moments,
        hessians=each(moments.hessians),
        outputs=each(moments.outputs),
        weights=each(moments.weights),
        diagonals=each(moments.diagonals),
    )


class _Worker:
    """A process, and a thread that waits for it."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.device = setup.device
        self.given: list[tuple[BlockTask, Future[None]]] = []
        """The tasks that it has, the first of which it is at."""
        self.lines: SimpleQueue[str] = SimpleQueue()
        """What it has said."""
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bitquilt.rounding.block_child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        self._thread = ThreadPoolExecutor(1)
        self._connection.send(setup)

    def give(self, task: BlockTask) -> None:
        """Let it do a task after those that it has; the moments stay here until then."""
        self.given.append((task, self._thread.submit(self._done, task)))

    def _done(self, task: BlockTask) -> None:
        """Send a task, and wait until it is done.

        Raises:
            OSError, EOFError: the process has died.
            UserError: the task failed.
        """

        def sent(numbers: Tensor) -> Any:
            return numbers if numbers.is_cuda else numbers.numpy()

        self._connection.send(replace(task, moments=passable(task.moments, sent)))
        while (answer := self._connection.recv()) != WorkerAnswer():
            if answer.failed:
                raise UserError(answer.failed)
            self.lines.put(answer.line)

    def close(self) -> None:
        """End the process: at once where it is at work, for what it writes is written whole."""
        idle = all(future.done() for _, future in self.given)
        if not idle:
            self._process.kill()
        self._thread.shutdown(cancel_futures=True)
        self._connection.close()  # which ends it where it is idle
        try:
            self._process.wait(DIES_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class BlockWorkers(AbstractContextManager["BlockWorkers"]):
    """A process for each of some devices, beside this one, which does what they have no time for.

    Where one dies, this one does its blocks.
    """

    def __init__(
        self, model: str, bank: LayerBank, devices: Sequence[str], progress: Progress
    ) -> None:
        """Start the processes, each of which takes some seconds to be ready.

        Args:
            model: the reference that the bank's checkpoint was opened by.
            bank: where results go.
            devices: a process computes on each; names as torch has them.
            progress: told what they say, and which of them died.
        """
        place = str(bank.work.path), bank.rounding
        self._progress = progress
        self._workers = [
            _Worker(WorkerSetup(model, place, device, asked_threads())) for device in devices
        ]

    def do(self, task: BlockTask) -> list[BlockTask]:
        """Give a task to the process that has fewest.

        Returns:
            tasks that are the caller's to do: this one where all processes have enough, and those
            of processes that have died.

        Raises:
            UserError: a task failed.
        """
        left = self._settle()
        worker = min(self._workers, key=lambda one: len(one.given), default=None)
        if worker is None or len(worker.given) >= MOST_GIVEN:
            return [*left, task]
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # the other process does not know of this one's stream
        worker.give(task)
        return left

    def take_back(self) -> list[BlockTask]:
        """Return tasks that are the caller's to do, and of each process those but the first."""
        left = self._settle()
        for worker in self._workers:
            left += [task for task, future in worker.given if future.cancel()]
            worker.given = [one for one in worker.given if not one[1].cancelled()]
        return left

    def wait(self) -> list[BlockTask]:
        """Wait until all is done; returns and raises what :meth:`do` does."""
        futures.wait([future for worker in self._workers for _, future in worker.given])
        return self._settle()

    def _settle(self) -> list[BlockTask]:
        """Pass on what was said, forget what is done, and return the tasks of those that died."""
        lost: list[BlockTask] = []
        for worker in list(self._workers):
            while not worker.lines.empty():
                self._progress.say(worker.lines.get())
            while worker.given and worker.given[0][1].done():
                _, future = worker.given[0]
                if isinstance(future.exception(), (EOFError, OSError)):
                    lost += self._bury(worker)
                    break
                future.result()
                del worker.given[0]
        return lost

    def _bury(self, worker: _Worker) -> list[BlockTask]:
        """Do without a process that has died, and return its tasks."""
        self._workers.remove(worker)
        lost = [task for task, _ in worker.given]
        self._progress.say(
            f"The process that rounded block {lost[0].moments.layer} on {worker.device} has died; "
            "the main process takes over its blocks"
        )
        worker.close()
        return lost

    def __exit__(self, *_: object) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()
