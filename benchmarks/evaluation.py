"""Are the intervals honest, and what does an evaluation cost?

python benchmarks/evaluation.py [coverage | cost]

Coverage: documents with known mean KL are drawn and measured; how often does the 95 % interval hold
the truth, how often is it above or below it, and by what factor are its ends apart? Token by token
KL is skewed (log-normal), and so are documents; differences between two models are drawn with a
known mean; tokens agree to a share that documents differ in. Few documents are asked for, too, to
see from how many on there should be an interval.
Cost: one GGUF file of the demo model against the original on 65,536 tokens, first and again.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from lib.timed import BITQUILT, run
from numpy.typing import NDArray

from bitquilt.metrics import intervals
from bitquilt.metrics.intervals import Documents
from bitquilt.metrics.kl import Estimate

TRIALS = 600
WINDOW = 200
COUNTS = (3, 4, 5, 6, 8, 13, 20, 40, 100)


def main() -> None:
    """Print one table, or both."""
    asked = sys.argv[1:] or ["coverage", "cost"]
    if "coverage" in asked:
        coverage()
    if "cost" in asked:
        cost()


def coverage() -> None:
    """Print shares of intervals that hold the truth, and of those above and below it."""
    intervals.FEWEST = 2  # to see what fewer would give
    print(f"{'figure':22} {'documents':>9} {'holds':>6} {'above':>6} {'below':>6} {'factor':>8}")
    for unlike in (0.0, 1.0):  # spread of the logarithm of lengths
        figures = {f"KL, spread {spread}": (_kl, spread) for spread in (0.3, 0.6, 1.0)}
        if not unlike:
            figures |= {f"difference, {spread}": (_difference, spread) for spread in (0.3, 0.6)}
            figures |= {f"agreement, {share}": (_agreement, share) for share in (0.8, 0.98)}
        for name, (draw, parameter) in figures.items():
            for count in COUNTS:
                random = np.random.default_rng(count)
                found = [_trial(random, draw, parameter, count, unlike) for _ in range(TRIALS)]
                known = np.array([one for one in found if not np.isnan(one).any()])
                holds, above, below = known[:, :3].mean(0)
                factor = np.median(known[:, 3])
                title = f"{name}, unlike" if unlike else name
                print(
                    f"{title:22} {count:9} {holds:6.1%} {above:6.1%} {below:6.1%} {factor:8.3g}",
                    flush=True,
                )


def _trial(
    random: np.random.Generator, draw: Draw, parameter: float, count: int, unlike: float
) -> tuple[float, ...]:
    """Whether the interval holds the truth, is above it, is below it, and its ends' ratio."""
    if unlike:
        sizes = np.maximum(20, random.lognormal(0, unlike, count) * 3 * WINDOW).astype(int)
    else:
        sizes = random.integers(2, 5, count) * WINDOW
    owner = np.repeat(np.arange(count), sizes)
    found, truth = draw(random, owner, count, parameter)
    if np.isnan(found.low):
        return (np.nan,) * 4
    above, below = found.low > truth, found.high < truth
    return not (above or below), above, below, found.high / max(found.low, 1e-9)


def _kl(
    random: np.random.Generator, owner: NDArray[np.int64], count: int, spread: float
) -> tuple[Estimate, float]:
    """The mean KL of a model, and the true one; ``spread`` is that of documents' logarithms."""
    level = random.lognormal(-(spread**2) / 2, spread, count)
    kl = level[owner] * random.lognormal(-0.5, 1.0, len(owner))
    return Documents.of(owner).positive(kl), 1.0


def _difference(
    random: np.random.Generator, owner: NDArray[np.int64], count: int, spread: float
) -> tuple[Estimate, float]:
    """What another model has more: a tenth on average, and noisily so for every token."""
    level = random.lognormal(-(spread**2) / 2, spread, count)
    kl = level[owner] * random.lognormal(-0.5, 1.0, len(owner))
    more = 0.1 * random.lognormal(-0.125, 0.5, count)[owner]
    return Documents.of(owner).mean(kl * (more + 0.3 * random.standard_normal(len(owner)))), 0.1


def _agreement(
    random: np.random.Generator, owner: NDArray[np.int64], count: int, share: float
) -> tuple[Estimate, float]:
    """The share of agreeing tokens; documents differ by 0.05 where it is 0.8."""
    own = random.beta(60 * share, 60 * (1 - share), count)
    hits = (random.random(len(owner)) < own[owner]).astype(float)
    return Documents.of(owner).share(hits), share


Draw = Callable[[np.random.Generator, NDArray[np.int64], int, float], tuple[Estimate, float]]


def cost() -> None:
    """Seconds and memory of an evaluation, without and with the original's answers at hand."""
    with tempfile.TemporaryDirectory() as directory:
        run(BITQUILT, "quantize", "demo", "--recipe", "Q4_K_M", "-o", directory)
        file = str(Path(directory) / "demo-Q4_K_M.gguf")
        work = str(Path(directory) / "evaluation")
        for when in ("the first time", "again"):
            spent = run(BITQUILT, "eval", file, "--against", "demo", "--work-dir", work)
            print(f"{when}: {spent}")


if __name__ == "__main__":
    main()
