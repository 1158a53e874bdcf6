"""A process that rounds blocks on one device: the other side of :mod:`.block_workers`.

    python -m bitquilt.rounding.block_child DESCRIPTOR

The descriptor is that of a connection, on which tasks come until nobody is at its other end.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing  # with it, connections pass tensors of a GPU
from torch import Tensor

from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.rounding import kernels
from bitquilt.rounding.block_workers import BlockTask, WorkerAnswer, WorkerSetup, passable
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.runtime.device import compute_device, computing
from bitquilt.runtime.malloc import keep_freed_memory
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir


class _Answers(Progress):
    """Sends sentences to the other side; how far the work is it knows itself."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        super().__init__()
        self._connection = connection

    def say(self, line: str) -> None:
        self._connection.send(WorkerAnswer(line=line))


def serve_tasks(connection: Connection[Any, Any]) -> None:
    """Do one task after the other, until nobody sends any more."""
    setup: WorkerSetup = connection.recv()
    kind, _, index = setup.device.partition(":")
    with computing(kind, setup.threads):
        if kind == "cuda":
            torch.cuda.set_device(int(index))
            kernels.start_compiling()
        checkpoint = open_checkpoint(setup.model)
        directory, rounding = setup.bank
        bank = LayerBank(checkpoint, WorkDir.borrowed(Path(directory)), rounding)
        says = _Answers(connection)
        with suppress(EOFError):
            while True:
                connection.send(_done(bank, connection.recv(), says))


def _done(bank: LayerBank, task: BlockTask, says: Progress) -> WorkerAnswer:
    """Do a task, and return what is to be said of it."""
    device = compute_device()
    # a copy, since the other side repeats the task where this process dies
    moments = passable(task.moments, lambda numbers: _taken(numbers, device))
    try:
        replace(task, moments=moments).do(bank, says)
    except UserError as error:
        return WorkerAnswer(failed=error.sentence)
    return WorkerAnswer()


def _taken(numbers: Any, device: torch.device) -> Tensor:
    """Return a tensor of this process: on its device, or on the CPU where it was there."""
    if isinstance(numbers, Tensor):
        return numbers.to(device, copy=True)
    return torch.from_numpy(numbers)


if __name__ == "__main__":
    # Ctrl-C reaches every process of a terminal; the parent decides what it stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    serve_tasks(Connection(int(sys.argv[1])))
