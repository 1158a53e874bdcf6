"""A process that reads a share of the text on one device: the other side of :mod:`.text_readers`.

    python -m bitquilt.rounding.reader_child NUMBER DEVICE THREADS PROCESS:DESCRIPTOR...

The number is that of this process; 0 threads are as many as torch has. The descriptors are those of
connections to the processes that read the other shares; the one under its own number is where
passes come from, until nobody is at its other end.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import current_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from bitquilt.calibration.text_share import LostProcessError, TextShare
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.rounding import kernels
from bitquilt.rounding.given_cells import GivenCells
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.rounding.text_readers import ReaderAnswer, ReaderSetup
from bitquilt.runtime.device import computing
from bitquilt.runtime.malloc import keep_freed_memory
from bitquilt.runtime.progress import Progress, Silent
from bitquilt.runtime.workdir import WorkDir


class _Answers(Progress):
    """Sends sentences to the main process; how far the work is it knows itself."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        super().__init__()
        self._connection = connection

    def say(self, line: str) -> None:
        self._connection.send(ReaderAnswer(line=line))


def serve_passes(
    device: str, threads: int | None, passes: Connection[Any, Any], share: TextShare
) -> None:
    """Take one pass after the other, until nobody asks for any more.

    Args:
        device: as torch names it.
        threads: of torch; its own number with None.
        passes: where what to work on comes from, and then passes.
        share: the part of the text that is read here.
    """
    kind, _, index = device.partition(":")
    # where the main process ends before it knows the job, there is nothing to do
    with computing(kind, threads), suppress(EOFError):
        if kind == "cuda":
            torch.cuda.set_device(int(index))
            kernels.start_compiling()
            torch.zeros(1, device=device)  # the driver takes seconds
        setup: ReaderSetup = passes.recv()
        current_process().authkey = setup.key
        directory, rounding = setup.bank
        work, given = WorkDir.borrowed(Path(directory)), GivenCells(setup.given, [], {})
        bank = LayerBank(open_checkpoint(setup.model), work, rounding, given)
        # where another process has died, the main one goes on alone
        with suppress(EOFError, ConnectionError, LostProcessError):
            while True:
                task = passes.recv()
                try:
                    # what is said of the whole text, the first process says
                    task.read(bank, share, Silent(), _Answers(passes))
                except UserError as error:
                    passes.send(ReaderAnswer(failed=error.sentence))
                    return
                passes.send(ReaderAnswer())


def _connections(arguments: list[str]) -> Mapping[int, Connection[Any, Any]]:
    """Return number of a process → connection, from ``PROCESS:DESCRIPTOR``."""
    pairs = (argument.split(":") for argument in arguments)
    return {int(number): Connection(int(descriptor)) for number, descriptor in pairs}


if __name__ == "__main__":
    # Ctrl-C reaches every process of a terminal; the parent decides what it stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    own, links = int(sys.argv[1]), dict(_connections(sys.argv[4:]))
    serve_passes(sys.argv[2], int(sys.argv[3]) or None, links.pop(own), TextShare(own, links))
