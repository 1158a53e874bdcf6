"""The GPUs of this host read the calibration text together and round its blocks in turn.

Each GPU but the first has a process of its own: how fast and how roughly torch multiplies is a
setting of a whole process, and Python launches kernels from one thread at a time. All processes
take the same pass (:class:`.text_pass.TextPass`), each over a share of the text
(:mod:`bitquilt.calibration.text_share`), and what they make goes into one work directory. Where one
dies, what it had read is lost: the main process takes the pass again, for the blocks that are left.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from itertools import combinations
from multiprocessing import Pipe, current_process
from multiprocessing.connection import Connection
from typing import Any

from bitquilt.calibration.text_share import LostProcessError, TextShare
from bitquilt.errors import UserError
from bitquilt.rounding.given_cells import GivenCell
from bitquilt.rounding.layer_bank import CellKey, LayerBank
from bitquilt.rounding.text_pass import TextPass
from bitquilt.runtime.compute import asked_threads
from bitquilt.runtime.progress import Progress


@dataclass(frozen=True)
class ReaderSetup:
    """What a process works on, the first message to it."""

    model: str
    """The reference that the checkpoint is opened by."""
    bank: tuple[str, str]
    """Its work directory, and the method of rounding."""
    given: Mapping[CellKey, Sequence[GivenCell]]
    """Matrices of files, which the bank may take."""
    key: bytes
    """By which processes open each other's tensors of the CPU."""


@dataclass(frozen=True)
class ReaderAnswer:
    """What a process has to say: a line, or why it failed, or with neither that a pass is over."""

    line: str = ""
    failed: str = ""


@dataclass(frozen=True)
class _Reader:
    """A process, and the connection on which passes go there."""

    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]


class ReaderProcesses(AbstractContextManager["ReaderProcesses"]):
    """The processes of some other devices, which are started before anything is known of a job.

    Each takes some ten seconds to be ready, in which the main process draws the text.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        """Start them.

        Args:
            devices: those beside this process's own, as torch names them.
        """
        links = _linked(1 + len(devices))
        self.share = TextShare(0, links[0])
        self.readers = [
            _started(number, device, links[number]) for number, device in enumerate(devices, 1)
        ]

    def stop(self) -> None:
        """End all of them, at work or not: what they write is written whole."""
        for reader in self.readers:
            reader.process.kill()
            reader.process.wait()
            reader.connection.close()
        for link in self.share.links.values():
            link.close()
        self.readers, self.share = [], TextShare()

    def __exit__(self, *_: object) -> None:
        """End all of them."""
        self.stop()


class TextReaders:
    """The processes that read: the one that asks, and those of other devices."""

    def __init__(
        self, model: str, bank: LayerBank, processes: ReaderProcesses, progress: Progress
    ) -> None:
        """Tell the processes what they work on.

        Args:
            model: the reference that the bank's checkpoint was opened by.
            bank: where results go.
            processes: those of other devices.
            progress: told what processes say, and that one has died.
        """
        self._bank, self._processes, self._progress = bank, processes, progress
        key = bytes(current_process().authkey)
        setup = ReaderSetup(model, (str(bank.work.path), bank.rounding), bank.given, key)
        for reader in processes.readers:
            with suppress(OSError):  # the first pass finds one that has died meanwhile
                reader.connection.send(setup)

    @property
    def count(self) -> int:
        """How many processes read."""
        return self._processes.share.count

    def read(self, task: TextPass, progress: Progress, says: Progress) -> None:
        """Take a pass together: in this process alone where another has died.

        Args:
            task: the pass.
            progress: advances with this process's reading.
            says: told what could not be done as usual.

        Raises:
            UserError: a block cannot be rounded.
        """
        if self._processes.readers and len(task.tokens) >= self.count:
            try:
                self._read_together(task, progress, says)
                return
            except LostProcessError:
                self._processes.stop()
                self._progress.say(
                    "A process of another GPU has died; the main process reads the text again, "
                    "for the blocks that are left"
                )
        task.read(self._bank, TextShare(), progress, says)

    def _read_together(self, task: TextPass, progress: Progress, says: Progress) -> None:
        """Take a pass in all processes."""
        try:
            for reader in self._processes.readers:
                reader.connection.send(task)
            task.read(self._bank, self._processes.share, progress, says)
        except (LostProcessError, OSError) as error:
            self._raise_what_failed()
            raise LostProcessError from error
        for reader in self._processes.readers:
            self._hear(reader)

    def _raise_what_failed(self) -> None:
        """Raise the reason why a process has ended, if any gave one."""
        for reader in self._processes.readers:
            try:
                while reader.connection.poll():
                    self._hear(reader)
            except LostProcessError:
                continue

    def _hear(self, reader: _Reader) -> None:
        """Pass on what a process says until its pass is over.

        Raises:
            LostProcessError: it has died.
            UserError: it has failed.
        """
        try:
            while (answer := reader.connection.recv()) != ReaderAnswer():
                if answer.failed:
                    raise UserError(answer.failed)
                self._progress.say(answer.line)
        except (EOFError, OSError) as error:
            raise LostProcessError from error


def _pipe() -> tuple[Connection[Any, Any], Connection[Any, Any]]:
    ends: Any = Pipe()  # Windows has another class, with the same methods
    one, other = ends
    return one, other


def _linked(count: int) -> list[dict[int, Connection[Any, Any]]]:
    """Connect so many processes with each other; return for each number → connection."""
    links: list[dict[int, Connection[Any, Any]]] = [{} for _ in range(count)]
    for one, other in combinations(range(count), 2):
        links[one][other], links[other][one] = _pipe()
    return links


def _started(number: int, device: str, links: Mapping[int, Connection[Any, Any]]) -> _Reader:
    """Start a process; its ends of connections are no longer open here then."""
    ours, theirs = _pipe()
    ends = {number: theirs, **links}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "bitquilt.rounding.reader_child",
            str(number),
            device,
            str(asked_threads() or 0),
            *(f"{of}:{end.fileno()}" for of, end in ends.items()),
        ],
        pass_fds=[end.fileno() for end in ends.values()],
    )
    for end in ends.values():
        end.close()
    return _Reader(process, ours)
