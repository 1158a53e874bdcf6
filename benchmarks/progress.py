"""How true the time left is: a run, asked every second, held against what it then took.

    python benchmarks/progress.py demo 4.5 gguf race
    python benchmarks/progress.py demo 4.5 mlx knapsack --threads 2

Prints the forecast of time, memory and disk beside what they were, the seconds of each stage
beside those expected, and the worst and the mean relative error of the time left: from a quarter of
the way on, as long as more than MOMENT seconds are left.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bitquilt
from bitquilt.runtime.progress import Silent

MOMENT = 5.0
"""With fewer seconds left than this, nobody asks for a percentage."""
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Watched(Silent):
    """Keeps what the time left was told to be, and when."""

    def __init__(self) -> None:
        """Start asking."""
        super().__init__()
        self.told: list[tuple[float, float, str]] = []
        self.taken: list[tuple[str, float]] = []
        self.lines: list[str] = []
        self.started: float | None = None
        self.over = threading.Event()
        threading.Thread(target=self._ask, daemon=True).start()

    def _ask(self) -> None:
        while not self.over.wait(1.0):
            if (now := self.time_left()) is not None:
                self.started = self.started or time.monotonic()
                title = self._titles[-1] if self._titles else ""
                self.told.append((time.monotonic() - self.started, now[1], title))

    @contextmanager
    def stage(self, title: str, total: float, kind: str = "") -> Iterator[None]:
        """Keep the seconds of a stage, those of stages within it too."""
        started = time.monotonic()
        with super().stage(title, total, kind):
            yield
        self.taken.append((kind, time.monotonic() - started))

    def say(self, line: str) -> None:
        """Keep it."""
        self.lines.append(line)


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("bits", type=float)
    parser.add_argument("to", choices=("gguf", "mlx", "both"))
    parser.add_argument("search", choices=("race", "knapsack"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--trace", action="store_true", help="print all that was told")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        config = bitquilt.QuantizeConfig(
            bits=asked.bits,
            to=asked.to,
            search=bitquilt.SearchConfig(method=asked.search),
            output=directory,
            threads=asked.threads,
            device=asked.device,
        )
        forecast, watched = bitquilt.estimate(asked.model, config), Watched()
        bitquilt.quantize(asked.model, config, progress=watched)
        watched.over.set()
        written = sum(f.stat().st_size for f in Path(directory).rglob("*") if f.is_file())
    print(f"{asked.model}, {asked.bits} bits, {asked.to}, {asked.search}")
    print(*(line for line in watched.lines[:4]), sep="\n")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT
    disk = forecast.disk.work_bytes + forecast.disk.output_bytes
    total = watched.told[-1][0]
    print(f"time: {forecast.seconds:.0f} s expected, {total:.0f} s taken")
    print(f"memory: {forecast.memory / 1e9:.2f} GB expected, {peak / 1e9:.2f} GB taken")
    print(f"disk: {disk / 1e6:.0f} MB expected, {written / 1e6:.0f} MB taken")
    print("stages, taken: " + ", ".join(f"{kind} {s:.1f}" for kind, s in watched.taken))
    print("expected:      " + ", ".join(f"{s.kind} {s.seconds:.1f}" for s in forecast.stages))
    print_errors(watched.told, total, asked.trace)


def print_errors(told: list[tuple[float, float, str]], total: float, trace: bool) -> None:
    """Print the errors of the time left."""
    errors = []
    for elapsed, left, title in told:
        truth = total - elapsed
        if trace:
            print(f"{elapsed:6.0f} s: {left:6.0f} s left told, {truth:6.0f} s true, {title}")
        if elapsed >= total / 4 and truth > MOMENT:
            errors.append((abs(left / truth - 1), elapsed, title))
    worst, when, title = max(errors)
    within = sum(error <= 0.25 for error, *_ in errors) / len(errors)
    print(
        f"time left after a quarter: worst error {worst:.0%} (after {when:.0f} s, {title}), "
        f"mean {sum(error for error, *_ in errors) / len(errors):.0%}, "
        f"within 25 % for {within:.0%} of the time"
    )


if __name__ == "__main__":
    main()
