"""The device that tensors are computed on, and the order of work on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def compute_device() -> torch.device:
    """Return the CUDA device if there is a GPU, else the CPU.

    Apple's Metal could run the rounding, which needs no float64, but nobody has tried it there.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def record_event() -> torch.cuda.Event | None:
    """Mark what this thread has asked the GPU to do so far; return None without a GPU."""
    if compute_device().type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


@contextmanager
def side_stream(after: torch.cuda.Event | None) -> Iterator[None]:
    """Run this thread's GPU work beside the rest: it waits for one event and nothing later.

    Args:
        after: what :func:`record_event` returned; with None nothing changes.
    """
    if after is None:
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_event(after)
    with torch.cuda.stream(stream):
        yield
