"""Where tensors are computed, and in how many threads, as somebody asked for it.

It is one setting of the process for as long as a ``with`` block runs, since torch has one number of
threads and whoever computes is many calls away from whoever was asked. Cheap to import, for the
command line; :mod:`bitquilt.runtime.device` tells torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bitquilt.runtime.options import option

DEVICES = ("auto", "cpu", "cuda")
"""Devices that can be asked for; ``auto`` is the GPU where torch finds one."""


def device_option() -> Any:
    """Make the field ``device`` of a config whose command computes in torch."""
    return option(
        "PyTorch computes on this device. auto: a GPU that runs CUDA if there is one, else the "
        "CPU.",
        default="auto",
        choices=DEVICES,
    )


def threads_option() -> Any:
    """Make the field ``threads`` of a config whose command computes in torch or in llama.cpp."""
    return option(
        "PyTorch and llama.cpp use this many threads; mlx-lm decides for itself.  [default: one "
        "for each core]",
        default=None,
        metavar="N",
        least=1,
        most=1024,
    )


@dataclass(frozen=True)
class _Asked:
    device: str = "auto"
    threads: int | None = None


_asked = _Asked()


def asked_device() -> str:
    """Return the device that was asked for, one of :data:`DEVICES`."""
    return _asked.device


def asked_threads() -> int | None:
    """Return the number of threads that was asked for; None where nobody did."""
    return _asked.threads


@contextmanager
def asking(device: str = "auto", threads: int | None = None) -> Iterator[None]:
    """Within the block, ask for a device and for a number of threads."""
    global _asked
    before, _asked = _asked, _Asked(device, threads)
    try:
        yield
    finally:
        _asked = before
