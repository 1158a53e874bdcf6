"""A base that is not written: the converter stays, and gives its tensors when they are read.

It takes no room on the disk. What is read twice is converted twice, and no engine can run it.
"""

from __future__ import annotations

import atexit
import subprocess
import tempfile
from collections import OrderedDict
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from threading import Lock
from typing import cast

import numpy as np

from bitquilt.bases.converter import (
    DEQUANTIZED_BY_LLAMA_CPP,
    converter_environment,
    converter_error,
    serving_command,
)
from bitquilt.bases.plain_checkpoint import PlainTensors
from bitquilt.errors import UserError
from bitquilt.gguf.header_only import StoredBytes, give_numbers, take_back
from bitquilt.runtime.files import atomic_write

KEPT_BYTES, LEAST_KEPT = 1 << 30, 2
"""Of the tensors that were read last, and how many at least: experts are asked for one by one, and
those of two stacks in turn, for they read the same."""
_LENGTH = 8
"""Bytes of the number of bytes that an answer begins with."""


class ServedBase:
    """The process of a converter, and the header that it wrote."""

    def __init__(self, directory: Path, path: Path) -> None:
        """Start the converter, and wait for the header.

        Args:
            directory: of a Hugging Face model, stored as the converter reads it.
            path: of the header.

        Raises:
            ConverterError: it failed.
            UserError: there is none.
        """
        self._directory, self._path, self._lock = directory, path, Lock()
        self._kept: OrderedDict[str, StoredBytes] = OrderedDict()
        self._open = ExitStack()
        self._printed = self._open.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        with atomic_write(path) as temporary:
            command = self._open.enter_context(serving_command(directory, temporary))
            self._process = subprocess.Popen(
                command,
                env=converter_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
            )
            self._answers = cast(BufferedReader, self._process.stdout)
            try:
                self._exactly(1)
            except UserError:
                self._end()
                raise
        give_numbers(path, self.tensor)

    def tensor(self, name: str) -> StoredBytes:
        """Return the data of a tensor as a file would have it, uint8 [bytes].

        Raises:
            UserError: the converter has ended.
        """
        with self._lock:
            if name not in self._kept:
                self._kept[name] = self._asked(name)
                while (
                    len(self._kept) > LEAST_KEPT and sum(map(len, self._kept.values())) > KEPT_BYTES
                ):
                    self._kept.popitem(last=False)
            self._kept.move_to_end(name)
            return self._kept[name]

    def close(self) -> None:
        """End the converter, and remove the header."""
        take_back(self._path)
        self._end()
        self._path.unlink(missing_ok=True)

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._open.close()

    def _asked(self, name: str) -> StoredBytes:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{name}\n".encode())
            self._process.stdin.flush()
        except OSError as error:
            raise self._error() from error
        return self._exactly(int.from_bytes(self._exactly(_LENGTH).tobytes(), "little"))

    def _exactly(self, count: int) -> StoredBytes:
        """Read so many bytes of what the converter answers."""
        found, done = bytearray(count), 0
        while done < count:
            read = self._answers.readinto(memoryview(found)[done:])
            if not read:
                raise self._error()
            done += read
        return np.frombuffer(found, np.uint8)

    def _error(self) -> UserError:
        self._process.wait()
        self._printed.seek(0)
        return converter_error(self._directory, self._printed.read())


_running: dict[Path, ServedBase] = {}


def can_be_served(directory: Path) -> bool:
    """Tell whether the converter reads a directory as it is stored, without a copy.

    Raises:
        UserError: the weights are damaged, or no model's.
    """
    return PlainTensors(directory).is_read(DEQUANTIZED_BY_LLAMA_CPP)


def serve_base(directory: Path, path: Path) -> None:
    """Write the header of a model's base, whose numbers can be read until :func:`end_served`.

    Args:
        directory: of a Hugging Face model.
        path: of the header.

    Raises:
        ConverterError: the converter failed.
        UserError: there is none.
    """
    end_served(path)
    _running[path] = ServedBase(directory, path)


def end_served(path: Path) -> None:
    """End the converter of a header, if there is one."""
    served = _running.pop(path, None)
    if served is not None:
        served.close()


@atexit.register
def _end_all() -> None:
    for path in list(_running):
        end_served(path)
