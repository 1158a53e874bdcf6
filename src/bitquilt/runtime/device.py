"""Where tensors are computed with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def compute_device() -> torch.device:
    """CUDA if there is a GPU, else the CPU.

    Apple's Metal could run the rounding, which needs no float64, but nobody has tried it there.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def record_event() -> torch.cuda.Event | None:
    """All that this thread has asked the GPU to do so far; None without one."""
    if compute_device().type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


@contextmanager
def side_stream(after: torch.cuda.Event | None) -> Iterator[None]:
    """Within, this thread's work on a GPU waits for that alone, not for what comes meanwhile."""
    if after is None:
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_event(after)
    with torch.cuda.stream(stream):
        yield
