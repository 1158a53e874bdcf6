"""How busy GPUs are, stage by stage: shares of the time of their cores and of their bandwidth."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bitquilt.runtime.progress import Progress

METRICS = {2: "multiprocessors", 5: "tensor cores", 10: "memory"}
"""Numbers of ``nvmlGpmMetricId_t`` → what is busy. Tensor cores take twice as long for TF32 as
for bfloat16."""


@dataclass(frozen=True)
class _Look:
    """What ``nvidia-smi`` says of one GPU and one second."""

    at: float
    shares: tuple[float, ...]
    """Percent, in the order of :data:`METRICS`."""


class WatchedStages(Progress):
    """Progress that keeps when each stage began and ended."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        super().__init__()
        self.stages: list[tuple[str, float, float]] = []

    @contextmanager
    def stage(self, title: str, total: float, kind: str = "") -> Iterator[None]:
        """Do as :meth:`Progress.stage` does."""
        started = time.monotonic()
        with super().stage(title, total, kind):
            yield
        self.stages.append((title, started, time.monotonic()))


@contextmanager
def activity_watched(progress: WatchedStages) -> Iterator[None]:
    """Print after the body how busy the GPUs were in each of its stages, if they can tell."""
    looks: list[_Look] = []
    if shutil.which("nvidia-smi") is None:
        yield
        return
    numbers = ",".join(map(str, METRICS))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    only = ["-i", visible] if visible else []
    watcher = subprocess.Popen(
        ["nvidia-smi", "dmon", f"--gpm-metrics={numbers}", "-d", "1", *only],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    reader = threading.Thread(target=_read, args=(watcher, looks))
    reader.start()
    try:
        yield
    finally:
        watcher.terminate()
        watcher.wait()
        reader.join()
    for title, start, end in progress.stages:
        own = [look.shares for look in looks if start <= look.at <= end]
        if own:
            means = (sum(column) / len(own) for column in zip(*own, strict=True))
            busy = ", ".join(
                f"{name} {mean:.0f} %" for name, mean in zip(METRICS.values(), means, strict=True)
            )
            print(f"{title}: {end - start:.0f} s; {busy}")


def _read(watcher: subprocess.Popen[str], looks: list[_Look]) -> None:
    assert watcher.stdout is not None
    for line in watcher.stdout:
        shares = line.split()[-len(METRICS) :]
        if all(share.isdecimal() for share in shares):  # not so in titles, nor the first time
            looks.append(_Look(time.monotonic(), tuple(map(float, shares))))
