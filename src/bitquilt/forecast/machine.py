"""How fast this machine is at what a run does, measured in a fraction of a second.

Letters: L tokens in a window, D model width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from bitquilt import qtypes
from bitquilt.calibration.text_budget import WINDOW
from bitquilt.models.blockwise import BlockwiseModel, batch_tokens
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.rounding.hessian import factorize
from bitquilt.rounding.round_matrices import RoundingJob, round_once
from bitquilt.runtime.device import compute_device, other_gpus
from bitquilt.runtime.products import fast_precision, multiplying
from bitquilt.runtime.progress import Silent

PROBE_SECONDS = 0.1
"""How long each speed is measured, and once at least."""
LEAST_PROBES, LONGEST_PROBES = 3, 1.0
"""So often at least, for on a busy machine one may wait long for a core; unless that takes so many
seconds, for a large model is not waited for."""
PROBE_ROWS = 8192
"""Rows of the output matrix that are measured; a large vocabulary takes as many times as long."""
PROBE_TYPE, PROBE_SHAPE, PROBE_NANOSECONDS = "Q4_K", (256, 1024), 372.0
"""A matrix that is rounded with error feedback, and what each of its weights took in one thread of
the machine that the table of :mod:`bitquilt.rounding.costs` is from."""


@dataclass(frozen=True, kw_only=True)
class PassSpeed:
    """What passes through one model take on this machine."""

    block: float
    """Seconds that a token takes forward through one block."""
    fast_block: float
    """The same with the fastest products of the device."""
    head: float
    """Seconds that a token takes to logits and their softmax."""


@dataclass(frozen=True, kw_only=True)
class MachineSpeed(PassSpeed):
    """What one model takes on this machine."""

    rounding: float
    """Seconds that one thread takes for what takes one on the machine of the table."""
    threads: int
    """Threads of torch."""
    on_gpu: bool
    gpus: int = 1
    """GPUs of this host, of which the first is timed."""


def pass_speed(checkpoint: Checkpoint) -> PassSpeed:
    """Time one window through one block, and its logits; no weight is read."""
    with torch.inference_mode():
        block, head = _block_seconds(checkpoint), _head_seconds(checkpoint)
        with multiplying(fast_precision(compute_device())):
            fast_block = _block_seconds(checkpoint, in_bfloat16=compute_device().type == "cuda")
    return PassSpeed(block=block, fast_block=fast_block, head=head)


def machine_speed(checkpoint: Checkpoint) -> MachineSpeed:
    """Time the passes, and the rounding of one small matrix; no weight is read."""
    weight = torch.randn(PROBE_SHAPE, generator=torch.Generator().manual_seed(0))
    factor = factorize(torch.eye(PROBE_SHAPE[1]).unsqueeze(0), ["a probe"], Silent())
    job = RoundingJob(weight, qtypes.get(PROBE_TYPE))
    seconds = _seconds(lambda: round_once([job], factor, feedback=True))
    return MachineSpeed(
        **asdict(pass_speed(checkpoint)),
        rounding=seconds / (weight.numel() * PROBE_NANOSECONDS * 1e-9),
        threads=torch.get_num_threads(),
        on_gpu=compute_device().type != "cpu",
        gpus=1 + len(other_gpus()),
    )


def _block_seconds(checkpoint: Checkpoint, in_bfloat16: bool = False) -> float:
    model = BlockwiseModel(checkpoint, lambda name: torch.full(checkpoint.shapes[name], 0.01))
    model.in_bfloat16, block = in_bfloat16, model.block(0)
    width = checkpoint.config["hidden_size"]
    # a GPU is only busy with as many tokens as go through it together
    windows = 1 if model.device.type == "cpu" else batch_tokens(width) // WINDOW
    hidden = torch.ones(windows, WINDOW, width, device=model.device)
    return _seconds(lambda: model.run(block, hidden)) / hidden[..., 0].numel()


def _head_seconds(checkpoint: Checkpoint) -> float:
    config, device = checkpoint.config, compute_device()
    rows = min(PROBE_ROWS, config["vocab_size"])
    head = torch.full((rows, config["hidden_size"]), 0.01, device=device)
    hidden = torch.ones(256, config["hidden_size"], device=device)
    seconds = _seconds(lambda: (hidden @ head.T).softmax(-1))
    share: float = config["vocab_size"] / rows
    return seconds / len(hidden) * share


def _seconds(work: Callable[[], object]) -> float:
    """Return the shortest time that some work takes, of as many as there is time for."""
    work()  # the first time, memory and threads are set up
    taken, started = list[float](), time.perf_counter()
    while (spent := time.perf_counter() - started) < PROBE_SECONDS or (
        len(taken) < LEAST_PROBES and spent < LONGEST_PROBES
    ):
        begun = time.perf_counter()
        work()
        _synchronize()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _synchronize() -> None:
    if compute_device().type == "cuda":
        torch.cuda.synchronize()
