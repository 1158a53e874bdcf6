"""Candidates a second with one Ray worker and with all: what a second GPU is worth to a search.

    python benchmarks/ray_workers.py [demo|950m]

Mixes of two grids are measured on the same windows by one worker, then by as many as this machine
has GPUs for (two, of half the cores each, where it has none). Both have measured once before the
clock starts, so that nobody is still loading.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import ray
import torch
from shape_950m import write_random

from bitquilt.bank import Bank
from bitquilt.calibration import corpus
from bitquilt.calibration.capture import capture
from bitquilt.calibration.text import encoder, token_windows
from bitquilt.checkpoint import open_checkpoint
from bitquilt.checkpoint.checkpoint import Checkpoint
from bitquilt.evaluation.written import Teacher
from bitquilt.forward import BlockwiseModel
from bitquilt.search import ray_evaluator
from bitquilt.search.evaluator import fastest
from bitquilt.search.ray_evaluator import RayEvaluator
from bitquilt.workdir import WorkDir

GRIDS = ("Q4_0", "Q8_0")
WINDOW, WINDOWS, CANDIDATES = 512, 16, 32


def main() -> None:
    """Print tokens a second of one worker and of all."""
    with tempfile.TemporaryDirectory() as directory:
        model = sys.argv[1] if len(sys.argv) > 1 else "demo"
        if model == "950m":
            model = str(Path(directory) / "random")
            write_random(Path(model))
        checkpoint = open_checkpoint(model)
        text = token_windows(corpus.bundled("calibration"), encoder(checkpoint), WINDOWS, WINDOW)
        with WorkDir(Path(directory) / "work", {}) as work:
            capture(BlockwiseModel(checkpoint), text, 1, work, lambda: None)
            bank = Bank(checkpoint, work, "nearest", print)
            bank.build({module: list(GRIDS) for module in checkpoint.matrices}, lambda: None)
            teacher = Teacher.of(checkpoint, text, work, "text")
            gpus = torch.cuda.device_count()
            ray_evaluator.CPUS = (os.cpu_count() or 2) // 2
            one, found = measured(checkpoint, bank, teacher, 1, gpus > 0)
            many, again = measured(checkpoint, bank, teacher, max(2, gpus), gpus > 0)
    print(f"{many / one:.2f} times as fast; the same KL: {np.array_equal(found, again)}")


def measured(
    checkpoint: Checkpoint, bank: Bank, teacher: Teacher, workers: int, on_gpus: bool
) -> tuple[float, np.ndarray]:
    """Tokens a second of a cluster of that size, and what it measured."""
    cores = workers * ray_evaluator.CPUS
    ray.init(num_cpus=cores, num_gpus=workers if on_gpus else 0, log_to_driver=False)
    precision = fastest(teacher.hidden.device)
    evaluate = RayEvaluator(checkpoint, bank.packed, "", precision, print)
    evaluate(teacher, mixes(checkpoint, 4 * workers), [0])
    candidates = mixes(checkpoint, CANDIDATES)
    started = time.monotonic()
    found = evaluate(teacher, candidates, range(WINDOWS))
    rate = CANDIDATES * WINDOWS * WINDOW / (time.monotonic() - started)
    ray.shutdown()
    print(f"{workers} workers: {rate:,.0f} tokens a second", flush=True)
    return rate, found


def mixes(checkpoint: Checkpoint, count: int) -> Sequence[Mapping[str, str]]:
    """Random ones, the same every time."""
    rng = np.random.default_rng(0)
    return [{m: str(rng.choice(GRIDS)) for m in checkpoint.matrices} for _ in range(count)]


if __name__ == "__main__":
    main()
