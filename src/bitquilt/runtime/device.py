"""The device that tensors are computed on, its threads, and the order of work on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bitquilt.errors import UserError
from bitquilt.runtime.compute import asked_device, asking


def compute_device() -> torch.device:
    """Return the device that was asked for; if none was, CUDA if there is a GPU, else the CPU.

    Apple's Metal could run the rounding, which needs no float64, but nobody has tried it there.
    """
    name = asked_device()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextmanager
def computing(device: str, threads: int | None) -> Iterator[None]:
    """Within the block, compute on a device and in so many threads.

    Args:
        device: one of :data:`bitquilt.runtime.compute.DEVICES`.
        threads: those of torch, and of llama.cpp; their own numbers with None.

    Raises:
        UserError: torch finds no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        cause = (
            "PyTorch finds no GPU that runs CUDA"
            if torch.backends.cuda.is_built()
            else "this PyTorch was built without CUDA"
        )
        raise UserError(
            f"--device=cuda is not available: {cause}; leave it out, or give --device=cpu"
        )
    before = torch.get_num_threads()
    with asking(device, threads):
        torch.set_num_threads(threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def device_name() -> str:
    """Return what is computed on, for people: the GPU's name, or the CPU and its threads."""
    device = compute_device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"the CPU, in {threads} thread{'s' if threads > 1 else ''}"


def other_gpus() -> list[str]:
    """List the GPUs beside the first that this process sees, as torch names them.

    ``CUDA_VISIBLE_DEVICES`` says which it sees. Elsewhere than on Linux there are none, for torch
    passes tensors of a GPU between processes there alone.
    """
    several = sys.platform == "linux" and compute_device().type == "cuda"
    count = torch.cuda.device_count() if several else 0
    return [f"cuda:{n}" for n in range(1, count)]


def gpu_memory() -> int:
    """Return the bytes of memory of the GPU that is computed on; 0 on the CPU."""
    device = compute_device()
    return 0 if device.type == "cpu" else torch.cuda.get_device_properties(device).total_memory


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
