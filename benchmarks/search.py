"""Searches compared on one bank, at the same bytes, on the same held-out text.

    python benchmarks/search.py [--bits 2.62,3.12,3.62,4.12,4.82] [--seeds 0,1,2] [--quick] [MODEL]

With everything on disk counted, the demo's files of these budgets have 2.8, 3.3, 3.8, 4.3 and 5
bits; docs/decisions/search.md calls them that.

For each budget: KL of the exact knapsack on predictions, and on what matrices cost together; then
for each seed KL of the race and of EvoPress with its authors' schedule (59 million token-forwards;
a GPU makes that minutes), and the paired difference with its 95 % interval. Token-forwards count
every token that a mix reads, at full depth even where hidden states are shared, and for the race
those of statistics and scores too.

``--quick`` gives EvoPress a fraction of its schedule, for a look on a CPU. ``--cost`` measures
instead what one budget and all of them take once the bank is there, and ``--mlx`` compares whole
MLX files of about 4.5 bits with mlx-lm's mixes rounded by mlx-lm. Whole GGUF files:
``benchmarks/mix.py``; several machines: ``benchmarks/ray_workers.py``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lib import peers
from lib.closing import closing_text
from lib.original import unquantized
from torch import Tensor

from bitquilt import pipeline, qtypes
from bitquilt.allocation import interactions, presets, sensitivity
from bitquilt.allocation.attribution import kl_attribution
from bitquilt.allocation.evaluator import Evaluator
from bitquilt.allocation.evopress import EvoPressSchedule, evolve
from bitquilt.allocation.history import History, latest_histories, read_history
from bitquilt.allocation.measurements import Measurements
from bitquilt.allocation.meter import Limits, Meter
from bitquilt.allocation.plan import make_plan, requests
from bitquilt.allocation.racing import CLEARLY, Difference, by_segment
from bitquilt.allocation.searching import SearchTask, run_search
from bitquilt.allocation.solver import solve
from bitquilt.allocation.space import AllocationSpace, AllocationVector
from bitquilt.calibration import corpus
from bitquilt.calibration.text import (
    budget_for,
    calibration_documents,
    encoder,
    mixed_windows,
    races_and_selection,
    search_documents,
    token_windows,
)
from bitquilt.calibration.text_budget import WINDOW
from bitquilt.config import EVOPRESS_WINDOWS, PlanConfig, SearchConfig
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import HeldOutFigures, weights_metrics
from bitquilt.models import open_checkpoint
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Allocation
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.runtime.hardware import rate
from bitquilt.runtime.malloc import keep_freed_memory
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from bitquilt.targets import GGUF, MLX

HELD_OUT, HELD_OUT_QUICK = 64, 16
ATTRIBUTION_PASSES = 4
"""What attribution costs a window, in forwards: there, there again for the gradients, and back."""
QUICK = EvoPressSchedule(generations=4, offspring=16, tokens=(512, 2048, 8192), survivors=(4, 2, 1))


def main() -> None:
    """Print a table per budget, and what else is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--bits", default="2.62,3.12,3.62,4.12,4.82")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--work-dir", type=Path, help="a bank made before is used again")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--mlx", action="store_true")
    asked = parser.parse_args()
    keep_freed_memory()
    bits = [float(number) for number in asked.bits.split(",")]
    seeds = [int(number) for number in asked.seeds.split(",")]
    with tempfile.TemporaryDirectory() as directory:
        work_dir = asked.work_dir or Path(directory) / "work"
        there = {"output": directory, "work_dir": work_dir}
        if asked.cost or not asked.mlx:
            pipeline.search(asked.model, bits=bits, search=SearchConfig(method="knapsack"), **there)
        if asked.cost:
            cost(asked.model, bits, there)
        if asked.mlx:
            mlx(asked.model, there)
        if asked.cost or asked.mlx:
            return
        settings = json.loads((work_dir / "settings.json").read_text())
        with WorkDir(work_dir, settings) as work:
            compare(Bench(asked.model, work, asked.quick), bits, seeds)


def cost(model: str, budgets: Sequence[float], there: dict[str, Any]) -> None:
    """Print what a search takes with a bank that is there, for one budget and for all."""
    matrices = open_checkpoint(model).matrices.values()
    operations = 2 * sum(rows * columns for rows, columns in matrices)
    for bits in dict.fromkeys([(budgets[len(budgets) // 2],), tuple(budgets)]):
        started = time.monotonic()
        pipeline.search(model, bits=bits, search=SearchConfig(seed=100 + len(bits)), **there)
        seconds = time.monotonic() - started
        last = read_history(latest_histories(there["work_dir"])["gguf"])[-1]
        pace = last["tokens"] / last["seconds"]
        print(
            f"{len(bits)} of {len(budgets)} budgets: {seconds:.0f} s; the race {last['tokens']:,} "
            f"tokens in {last['seconds']:.0f} s, {pace:,.0f} a second",
            flush=True,
        )
        if torch.cuda.is_available():
            print(f"{pace * operations / peak():.1%} of this card's bfloat16 products", flush=True)


def peak() -> float:
    """Operations a second of this GPU's bfloat16 products, measured on large ones."""
    wide = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def product() -> None:
        wide @ wide
        torch.cuda.synchronize()

    return 2 * len(wide) ** 3 * rate(product)


class Bench:
    """One model's bank, text to search on, and held-out text to compare on."""

    def __init__(self, model: str, work: WorkDir, quick: bool) -> None:
        self.work, self.checkpoint = work, open_checkpoint(model)
        self.schedule = QUICK if quick else EvoPressSchedule()
        self.much = budget_for(self.checkpoint)
        self.windows = self.much.search if quick else EVOPRESS_WINDOWS
        self.bank = LayerBank(self.checkpoint, work, "full")
        self.held_out = HELD_OUT_QUICK if quick else HELD_OUT
        encode, (documents, _) = encoder(self.checkpoint), races_and_selection(search_documents())
        searched = mixed_windows((), documents, encode, self.windows, WINDOW)
        together = mixed_windows((), documents, encode, self.much.search, WINDOW)[
            : self.much.interactions
        ]
        held_out = token_windows(corpus.bundled("held-out"), encode, self.held_out, WINDOW)
        self._evaluator = Evaluator(self.checkpoint, self.bank.packed)
        original = OriginalModel(self.checkpoint, work)
        self._searched = original.on(searched)
        self._attribution_text = original.on(together)
        self._held_out_text = original.on(held_out)

    def space(self, bits: float) -> tuple[AllocationSpace, int]:
        """What may be chosen at a budget, scored by predictions, and the capacity."""
        planned = make_plan(self.checkpoint, requests(PlanConfig(bits=bits))[0], GGUF).space
        assert planned is not None
        scored = sensitivity.predicted(self.bank, planned.candidate_sets)
        return AllocationSpace.of(scored), planned.capacity

    def corrected(self, space: AllocationSpace, capacity: int) -> AllocationSpace:
        """The same space, scored by what matrices cost together."""
        text, packed = self._attribution_text, self.bank.packed

        def attribution(allocation: Allocation) -> np.ndarray:
            return kl_attribution(self.checkpoint, allocation, packed, text, Silent())

        return interactions.corrected_scores(space, [capacity], attribution)

    def measurements(self, windows: int, name: str) -> Measurements:
        """Measurements on the first windows, with a history of their own."""
        evaluate = partial(self._evaluator, self._searched)
        history = self.work.path / "search" / f"bench-{self.windows}-{name}.jsonl"
        return Measurements(evaluate, windows, Meter(WINDOW), History(history))

    def held_out_samples(
        self, space: AllocationSpace, vectors: Sequence[AllocationVector]
    ) -> list[np.ndarray]:
        """Samples of each allocation on held-out text."""
        allocations = [space.allocation(vector) for vector in vectors]
        found = by_segment(self._evaluator(self._held_out_text, allocations, range(self.held_out)))
        return [one.ravel() for one in found]

    @property
    def before(self) -> int:
        """Token-forwards of statistics and scores; a pass back counts as four."""
        read = 5 * self.much.calibration
        return WINDOW * (read + ATTRIBUTION_PASSES * self.much.interactions)


def compare(bench: Bench, budgets: Sequence[float], seeds: Sequence[int]) -> None:
    """Race against EvoPress at each budget."""
    print(
        f"{'bits':>5} {'seed':>4}  {'predicted, KL':>13} {'together':>8} {'race':>8} "
        f"{'EvoPress':>8}  "
        f"{'race - EvoPress':>17}  {'token-forwards':>24} {'share':>7} {'seconds':>12}"
    )
    for bits in budgets:
        space, capacity = bench.space(bits)
        scored = bench.corrected(space, capacity)
        exact = [solve(one, capacity) for one in (space, scored)]
        for seed in seeds:
            raced, race_tokens, race_seconds = race(bench, scored, capacity, bits, seed)
            evolved, tokens, seconds = evopress(bench, space, capacity, bits, seed)
            alone, a, b, c = bench.held_out_samples(space, [*exact, raced, evolved])
            behind, level = Difference.of(b, c), c.mean()
            share = (race_tokens + bench.before) / tokens
            print(
                f"{bits:5.2f} {seed:4}  {alone.mean():13.5f} {a.mean():8.5f} {b.mean():8.5f} "
                f"{level:8.5f}  "
                f"{behind.mean / level:+8.2%} ± {CLEARLY * behind.error / level:6.2%}  "
                f"{race_tokens + bench.before:11,} {tokens:12,} {share:7.4f} "
                f"{race_seconds:5.0f} {seconds:6.0f}",
                flush=True,
            )


def race(
    bench: Bench, space: AllocationSpace, capacity: int, bits: float, seed: int
) -> tuple[AllocationVector, int, float]:
    """The race's allocation, token-forwards and seconds."""
    measured = bench.measurements(bench.much.search, f"race-{bits}-{seed}")
    task, limits = SearchTask(space, {f"{bits}": capacity}, seed), Limits(bench.much.races * WINDOW)
    best = run_search("race", task, measured, limits, Silent())
    return best[f"{bits}"], measured.meter.tokens, measured.meter.seconds


def evopress(
    bench: Bench, space: AllocationSpace, capacity: int, bits: float, seed: int
) -> tuple[AllocationVector, int, float]:
    """The same of EvoPress."""
    measured = bench.measurements(bench.windows, f"evopress-{bits}-{seed}")
    text, rng = (measured.windows, WINDOW), np.random.default_rng(seed)
    *_, last = evolve(space, capacity, measured.of(space), text, bench.schedule, rng)
    return last.vector, measured.meter.tokens, measured.meter.seconds


def mlx(model: str, there: dict[str, Any]) -> None:
    """Whole MLX files: mlx-lm's mixes, rounded by mlx-lm, and ours of the same bytes."""
    checkpoint = open_checkpoint(model)
    mixes = {name: presets.preset(name, checkpoint, "mlx") for name in ("mixed_3_6", "mixed_4_6")}
    mixes["dynamic_quant"] = by_dynamic_quant(model, there)
    print(f"{'mlx-lm':14} {'bytes':>10}  {'text':6}  {'KL':28}{'ours':28}share")
    for name, mix in mixes.items():
        size = MLX.plan(checkpoint, mix).total_bytes
        ours = pipeline.quantize(model, size=f"{size}B", to="mlx", **there).outputs[0].figures
        theirs = rounded_by_mlx(checkpoint, there["work_dir"], mix)
        for kind, figures in theirs.kinds.items():
            kl, own = figures.kl, ours.kinds[kind].kl
            share = own.mean / kl.mean
            print(f"{name:14} {size:10,}  {kind:6}  {kl!s:28}{own!s:28}{share:.3f}", flush=True)


def by_dynamic_quant(model: str, there: dict[str, Any]) -> dict[str, str]:
    """What mlx-lm's dynamic_quant makes of the unquantized model, asked for 4.5 bits."""
    from lib import dynamic_quant

    original = unquantized(open_checkpoint(model), Path(there["output"]) / "original")
    documents, _ = calibration_documents(None)
    tokens = token_windows(documents, encoder(open_checkpoint(model)), 24, WINDOW)
    return dynamic_quant.allocation(original, tokens, 4.5)


def rounded_by_mlx(checkpoint: Checkpoint, work_dir: Path, mix: Allocation) -> HeldOutFigures:
    """A mix with every matrix rounded by mlx, on the windows of the closing figures."""
    with WorkDir(work_dir, json.loads((work_dir / "settings.json").read_text())) as work:
        closing = closing_text(checkpoint, work)

        def load(name: str) -> Tensor:
            module, weight = name.removesuffix(".weight"), checkpoint.load(name)
            return peers.mlx(qtypes.get(mix[module]), weight) if module in mix else weight

        return closing.figures(weights_metrics(closing.teacher, checkpoint, load), "torch")


if __name__ == "__main__":
    main()
