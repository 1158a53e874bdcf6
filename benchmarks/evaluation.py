"""Are the intervals honest, and what does an evaluation cost?

python benchmarks/evaluation.py [coverage | cost]

Coverage: documents with known mean KL are drawn and measured; how often does the 95 % interval hold
the truth? Token by token KL is skewed (log-normal), and so are documents; differences between two
models are drawn with a known mean. Beside ours stands the percentile bootstrap over documents.
Cost: one GGUF file of the demo model against the original on 65,536 tokens, first and again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from lib.timed import BITQUILT, run
from numpy.typing import NDArray

from bitquilt.metrics.intervals import Documents
from bitquilt.metrics.kl import Estimate

TRIALS = 1000
WINDOW = 511
SPREAD = {"alike": 0.3, "unlike": 0.6}
"""Standard deviation of a document's log mean KL."""
Floats = NDArray[np.float64]


def main() -> None:
    """Print one table, or both."""
    asked = sys.argv[1:] or ["coverage", "cost"]
    if "coverage" in asked:
        coverage()
    if "cost" in asked:
        cost()


def coverage() -> None:
    """Share of intervals that hold the truth."""
    print(f"{'documents':>9} {'':6} {'figure':10} {'ours':>6} {'percentiles':>12}")
    for spread, sigma in SPREAD.items():
        for count in (8, 13, 20, 40, 100):
            for figure in ("mean", "difference"):
                ours, theirs = _covered(count, sigma, figure)
                print(f"{count:9} {spread:6} {figure:10} {ours:6.1%} {theirs:12.1%}", flush=True)


def _covered(count: int, sigma: float, figure: str) -> tuple[float, float]:
    """Shares of trials that the truth is in: with our intervals, and with percentiles."""
    random = np.random.default_rng(count)
    ours = theirs = 0
    for _ in range(TRIALS):
        windows = random.integers(2, 5, count)  # of a document, nearly the same of each
        owner = np.repeat(np.arange(count), windows * WINDOW)
        tokens, truth = _drawn(random, owner, count, sigma, figure)
        found = Documents.of(owner, np.zeros_like(owner)).mean(tokens)
        ours += found.low <= truth <= found.high
        plain = _percentiles(random, np.bincount(owner, tokens), windows * WINDOW)
        theirs += plain.low <= truth <= plain.high
    return ours / TRIALS, theirs / TRIALS


def _drawn(
    random: np.random.Generator, owner: NDArray[np.int64], count: int, sigma: float, figure: str
) -> tuple[Floats, float]:
    """Figures of tokens and their true mean: KL of one model, or what another has more."""
    level = random.lognormal(-(sigma**2) / 2, sigma, count)
    kl = level[owner] * random.lognormal(-0.5, 1.0, len(owner))
    if figure == "mean":
        return kl, 1.0
    # a tenth more on average: more for some documents, and noisily so for every token
    more = 0.1 * random.lognormal(-0.125, 0.5, count)[owner]
    return kl * (more + 0.3 * random.standard_normal(len(owner))), 0.1


def _percentiles(random: np.random.Generator, sums: Floats, sizes: Floats) -> Estimate:
    """The plain bootstrap over documents."""
    drawn = random.integers(len(sums), size=(1000, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    return Estimate(sums.sum() / sizes.sum(), *np.quantile(means, [0.025, 0.975]))


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
