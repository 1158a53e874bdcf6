"""Tokens a second with one Ray worker and with all: what a second GPU is worth to a search.

    python benchmarks/ray_workers.py [demo|950m]

Mixes of two types are measured on the same windows by one worker, then by as many as this machine
has GPUs for (two, of half the cores each, where it has none). Both have measured once before the
clock starts, so that nobody is still loading.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import numpy as np
import ray
import torch
from lib.captured import WINDOW, captured

from bitquilt.allocation.ray_evaluator import RayEvaluator
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import Teacher
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Allocation
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.rounding.round_layers import round_layers
from bitquilt.runtime.products import fast_precision
from bitquilt.runtime.progress import Progress, Silent

QTYPES = ("Q4_0", "Q8_0")
WINDOWS, ALLOCATIONS = 16, 32
CPUS = (os.cpu_count() or 2) // 2
"""Cores of a worker where there are no GPUs."""


def main() -> None:
    """Print tokens a second of one worker and of all."""
    shape = sys.argv[1] if len(sys.argv) > 1 else "demo"
    with captured(shape, WINDOWS) as (checkpoint, text, work):
        bank = LayerBank(checkpoint, work, "nearest")
        round_layers(bank, {module: list(QTYPES) for module in checkpoint.matrices}, Silent())
        teacher = OriginalModel(checkpoint, work).on(text)
        gpus = torch.cuda.device_count()
        one, found = measured(checkpoint, bank, teacher, 1, gpus > 0)
        many, again = measured(checkpoint, bank, teacher, max(2, gpus), gpus > 0)
    print(f"{many / one:.2f} times as fast; the same KL: {np.array_equal(found, again)}")


def measured(
    checkpoint: Checkpoint, bank: LayerBank, teacher: Teacher, workers: int, on_gpus: bool
) -> tuple[float, np.ndarray]:
    """Tokens a second of a cluster of that size, and what it measured."""
    ray.init(num_cpus=workers * CPUS, num_gpus=workers if on_gpus else 0, log_to_driver=False)
    precision = fast_precision(teacher.hidden.device)
    evaluate = RayEvaluator(checkpoint, bank.packed, "", precision, Progress(), CPUS)
    evaluate(teacher, allocations(checkpoint, 4 * workers), [0])
    searched = allocations(checkpoint, ALLOCATIONS)
    started = time.monotonic()
    found = evaluate(teacher, searched, range(WINDOWS))
    rate = ALLOCATIONS * WINDOWS * WINDOW / (time.monotonic() - started)
    ray.shutdown()
    print(f"{workers} workers: {rate:,.0f} tokens a second", flush=True)
    return rate, found


def allocations(checkpoint: Checkpoint, count: int) -> Sequence[Allocation]:
    """Random allocations, the same every time."""
    rng = np.random.default_rng(0)
    return [{m: str(rng.choice(QTYPES)) for m in checkpoint.matrices} for _ in range(count)]


if __name__ == "__main__":
    main()
