"""Blocks that are rounded in a process for each GPU of this host, while the next ones are read.

A block's matrices need nothing but its moments and its weights, so that blocks go to whichever GPU
is free. Each has a process of its own: how fast and how roughly torch multiplies is a setting of a
whole process, and Python launches kernels from one thread at a time. Moments are not copied on the
way: a process maps the memory of another. What the processes make goes into one work directory.
"""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

import torch
import torch.multiprocessing  # with it, connections pass tensors of a GPU
from torch import Tensor

from bitquilt.calibration.block_moments import BlockMoments
from bitquilt.errors import UserError
from bitquilt.rounding.layer_bank import Candidates, LayerBank
from bitquilt.runtime.compute import asked_threads
from bitquilt.runtime.progress import Progress

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
    """A process, and the task that it is at."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.device = setup.device
        self.task: BlockTask | None = None
        self.connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bitquilt.rounding.block_child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        self.connection.send(setup)

    def give(self, task: BlockTask) -> None:
        """Send a task; the moments stay here until it is done."""
        self.task = task

        def sent(numbers: Tensor) -> Any:
            return numbers if numbers.is_cuda else numbers.numpy()

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # the other process does not know of this one's stream
        with suppress(OSError):  # it has died, which is noticed when it is listened to
            self.connection.send(replace(task, moments=passable(task.moments, sent)))

    def close(self) -> None:
        """End the process, which does so itself when it is idle and nobody is at the other end."""
        self.connection.close()
        if self.task is not None:
            self._process.kill()
        try:
            self._process.wait(DIES_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class BlockWorkers(AbstractContextManager["BlockWorkers"]):
    """A process for each of several devices. Where one dies, the others do its blocks."""

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
        self._waiting: deque[BlockTask] = deque()
        self._workers = [
            _Worker(WorkerSetup(model, place, device, asked_threads())) for device in devices
        ]

    def do(self, task: BlockTask) -> list[BlockTask]:
        """Give a task to a process, as soon as one is free.

        Returns:
            tasks that are left to the caller, since all processes have died.

        Raises:
            UserError: a task failed.
        """
        self._waiting.append(task)
        while self._waiting and self._workers:
            free = next((worker for worker in self._workers if worker.task is None), None)
            if free is None:
                self._listen()
            else:
                free.give(self._waiting.popleft())
        left, self._waiting = list(self._waiting), deque()
        return left

    def wait(self) -> list[BlockTask]:
        """Wait until all is done; returns and raises what :meth:`do` does."""
        left: list[BlockTask] = []
        while any(worker.task for worker in self._workers):
            self._listen()
            if self._waiting:
                left += self.do(self._waiting.popleft())
        return left

    def _listen(self) -> None:
        """Take what busy processes say next."""
        busy = [worker for worker in self._workers if worker.task is not None]
        ready = wait([worker.connection for worker in busy])
        for worker in busy:
            if worker.connection not in ready:
                continue
            try:
                answer: WorkerAnswer = worker.connection.recv()
            except (EOFError, OSError):
                self._bury(worker)
                continue
            if answer.failed:
                raise UserError(answer.failed)
            if answer.line:
                self._progress.say(answer.line)
            else:
                worker.task = None

    def _bury(self, worker: _Worker) -> None:
        """Do without a process that has died; its task waits for another."""
        self._workers.remove(worker)
        assert worker.task is not None
        layer, others = worker.task.moments.layer, len(self._workers)
        self._waiting.append(worker.task)
        instead = "the others go on with it" if others else "this process goes on with it"
        self._progress.say(
            f"The process that rounded block {layer} on {worker.device} has ended; {instead}"
        )
        worker.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all processes, those at work at once: what they write is written whole."""
        for worker in self._workers:
            worker.close()
