"""The seconds that each stage of a run is expected to take on this machine.

Passes are counted in tokens through blocks, whose time :mod:`.machine` measures; the factors are
from the runs in docs/decisions/forecast.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from bitquilt.allocation.evopress import EvoPressSchedule
from bitquilt.allocation.plan import Plan
from bitquilt.allocation.race_search import SETTLED
from bitquilt.allocation.sensitivity import ALONE_WINDOWS
from bitquilt.calibration.block_moments import input_of
from bitquilt.forecast.machine import MachineSpeed
from bitquilt.forecast.work import RunWork
from bitquilt.models.checkpoint import EMBEDDING, HEAD
from bitquilt.models.names import layer_of
from bitquilt.rounding.costs import polishing_seconds, rounding_seconds
from bitquilt.rounding.row_sample import SHARE
from bitquilt.runtime.job import ExpectedStage
from bitquilt.targets import Target

THERE_AND_BACK, ATTRIBUTION, SEQUENTIAL = 3.4, 8.5, 3.8
"""What a pass takes in passes forward: there and back, with gradients of weights too, and in two
streams, with sums of how they drift apart."""
MOMENTS = 1.35
"""What the moments of a block's inputs take in passes forward, for as many entries as the block has
weights."""
KL_HEADS, GRADIENT_HEADS = 3.0, 8.0
"""What a token's KL takes in logits with their softmax, and with gradients of both."""
ROUNDING = ("rounding", "polishing")
"""Stages whose speed goes with that of rounding; that of all others goes with passes."""
SHARING = 0.75
"""What a mix takes of a pass forward where many are measured: they share what is alike."""
SELECTED_RACE, SELECTED_KNAPSACK = 0.6, 0.2
"""The share of the text for selection that is read: it stops when one mix is clearly best."""
THREADS_HELP = 0.3
"""Rounding takes as long as one thread would, divided by this power of the number of threads."""
GPU_FACTORIZES = 5e-14
"""Seconds that a GPU takes in each pass for C³ of an input's C columns: how far its moment is
trusted, and its factors (docs/decisions/forecast.md)."""
GPU_ROUNDS, GPU_STARTS = 0.0085, 3.0
"""What a GPU takes of the seconds of one thread, and until its kernels are compiled."""
DECODING, CHECKING, WRITING = 8e-9, 20e-9, 8e-9
"""Seconds that a weight takes to be decoded, to be checked in a file and to be written."""
GPU_HANDLES = 0.065
"""What a machine with a GPU takes of them."""
STARTING, ENGINE_BYTES = 1.0, 1e9
"""Seconds until the first block is loaded, and the bytes that an engine loads in a second."""


class StageSeconds:
    """The stages of one run on one machine."""

    def __init__(self, work: RunWork, speed: MachineSpeed) -> None:
        self._work, self._speed = work, speed

    def stages(self) -> list[ExpectedStage]:
        """List the stages in the order in which they come."""
        return [
            ExpectedStage(kind, seconds, "rounding" if kind in ROUNDING else "passes")
            for kind, seconds in self._all()
        ]

    def _all(self) -> Iterator[tuple[str, float]]:
        work = self._work
        reading, estimates = self._calibration(), sum(map(self._rounded, work.targets)) / SHARE
        if work.two_passes:
            yield "calibration", reading + estimates
        else:
            yield "calibration", STARTING if work.collected else reading
        for target in work.targets:
            if work.estimates and not work.two_passes:
                yield "rounding", self._rounded(target) / SHARE
            if work.estimates:
                yield "rounding", self._made(target) + (reading if work.two_passes else 0.0)
            else:
                yield "rounding", self._rounded(target)
            if not work.decided(target):
                yield from self._deciding(target)
            if work.forgets:
                yield from (("polishing", self._polished(plan)) for plan in work.of(target))
        if work.quantizing is None:
            return
        yield "closing text", self._forward(work.closing)
        closing = work.closing * work.budget.window
        yield "original", closing * 2 * self._speed.head
        for plan in work.plans:
            yield from self._finishing(plan)

    def _deciding(self, target: Target) -> Iterator[tuple[str, float]]:
        """The stages that decide the mixes of one format."""
        work, budget, search = self._work, self._work.budget, self._work.search
        capacities = work.capacities(target)
        if not capacities:
            return
        if search.scores == "measured":
            cells = sum(map(len, work.candidates[target.name].values()))
            yield "search text", self._search_text(target)
            yield "scores", self._measured(cells * ALONE_WINDOWS * budget.window)
        for _ in range(capacities if work.interactions(target) else 0):
            yield "interactions", self._attribution(work.interactions(target))
        if search.method != "knapsack":
            if search.scores != "measured":
                yield "search text", self._search_text(target)
            yield "search", self._search(capacities)
        for plan in work.of(target):
            if plan.space and work.selects:
                exact = search.method == "knapsack"
                mixes = 2 if exact else 3
                windows = budget.selection * (SELECTED_KNAPSACK if exact else SELECTED_RACE)
                read = self._forward(windows) + self._measured(windows * budget.window * mixes)
                yield "selection", read

    def _finishing(self, plan: Plan) -> Iterator[tuple[str, float]]:
        """The stages that make one file."""
        work, quantizing = self._work, self._work.quantizing
        assert quantizing is not None
        handled = self._handled()
        if not work.forgets:
            yield "polishing", self._polished(plan)
        if plan.sequential:
            again = sum(
                rounding_seconds(qtype, work.weights(module), table=False)
                for module, qtype in plan.allocation.items()
                if module not in (EMBEDDING, HEAD)
            )
            passes = SEQUENTIAL * self._forward(work.budget.calibration)
            yield "sequential", passes + self._rounding(again) + self._polished(plan)
        if quantizing.tune:
            tokens = work.tokens["tuning"]
            yield "tuning", self._gradients(tokens, tokens / work.budget.window / 8)
        yield "writing", handled * WRITING
        closing = work.closing
        kl = closing * work.budget.window * KL_HEADS * self._speed.head
        yield "checking", self._forward(closing) + kl + handled * CHECKING
        if quantizing.engine_check:
            if not _installed(plan.target):
                yield "engine", 0.0
                return
            yield "engine", plan.target.engine_seconds + plan.layout.total_bytes / ENGINE_BYTES

    def _search_text(self, target: Target) -> float:
        """Seconds of the text that all formats search on, which the first of them reads."""
        first = next(t for t in self._work.targets if self._work.capacities(t))
        return self._forward(self._work.budget.search) if target is first else 0.0

    def _forward(self, windows: float) -> float:
        """Seconds of some windows through all blocks."""
        tokens = windows * self._work.budget.window
        return tokens * self._work.checkpoint.layers * self._speed.block

    def _calibration(self) -> float:
        budget, layers = self._work.budget, self._work.checkpoint.layers
        tokens = budget.calibration * budget.window
        widths = self._widths()
        entries = sum(columns**2 for columns in widths)
        passes = THERE_AND_BACK + MOMENTS * entries / self._work.checkpoint.block_weights * layers
        logits = tokens * 2 * KL_HEADS * self._speed.head
        seconds = tokens * layers * passes * self._speed.fast_block + logits
        if self._speed.on_gpu:
            seconds += layers * GPU_FACTORIZES * sum(columns**3 for columns in widths)
        return STARTING + seconds / self._readers

    def _widths(self) -> list[int]:
        """List C of the inputs of the first block."""
        shapes = self._work.checkpoint.matrices
        inputs = {input_of(module): columns for module, (_, columns) in shapes.items()}
        return [columns for owner, columns in inputs.items() if layer_of(owner) == 0]

    @property
    def _readers(self) -> int:
        """How many GPUs read the text, and round in turn what is not a table."""
        return self._speed.gpus if self._work.two_passes else 1

    def _gradients(self, tokens: float, batches: float) -> float:
        through = tokens * self._work.checkpoint.layers * self._speed.block * ATTRIBUTION
        logits = tokens * GRADIENT_HEADS * self._speed.head
        return through + logits + batches * 2 * self._handled() * DECODING

    def _handled(self) -> float:
        """Return all weights, of which a machine with a GPU decodes, checks and writes more."""
        weights = sum(map(self._work.weights, self._work.checkpoint.matrices))
        return weights * (GPU_HANDLES if self._speed.on_gpu else 1.0)

    def _attribution(self, windows: int) -> float:
        tokens = windows * self._work.budget.window
        return self._forward(windows) + self._gradients(tokens, windows / 2)

    def _measured(self, tokens: float) -> float:
        """Seconds of so many token-forwards of mixes, with their KL."""
        through = self._work.checkpoint.layers * self._speed.block
        return tokens * (through + KL_HEADS * self._speed.head)

    def _search(self, capacities: int) -> float:
        search = self._work.search
        tokens = float(search.tokens or 0)
        if search.method == "evopress" and search.tokens is None:
            tokens = float(EvoPressSchedule().token_forwards * capacities)
        settled = SETTLED if search.method == "race" else 1.0
        seconds = settled * SHARING * self._measured(tokens)
        return seconds if search.seconds is None else min(seconds, search.seconds)

    def _rounded(self, target: Target) -> float:
        inside, tables = 0.0, 0.0
        for module, name in self._work.to_round(target):
            if module in (EMBEDDING, HEAD):
                tables += rounding_seconds(name, self._work.weights(module), table=True)
            else:
                inside += rounding_seconds(name, self._work.weights(module), table=False)
        return self._rounding(inside, tables)

    def _made(self, target: Target) -> float:
        """Seconds of what is rounded, and polished, once types are chosen."""
        work, full = self._work, self._work.config.rounding == "full"
        inside, tables = 0.0, 0.0
        for module, name in work.made(target):
            weights = work.weights(module)
            if module in (EMBEDDING, HEAD):
                tables += rounding_seconds(name, weights, table=True)
                continue
            inside += rounding_seconds(name, weights, table=False)
            inside += polishing_seconds(name, weights) if full else 0.0
        return self._rounding(inside, tables)

    def _polished(self, plan: Plan) -> float:
        work = self._work
        if work.config.rounding != "full" or work.estimates:
            return 0.0
        inside = {m: q for m, q in plan.allocation.items() if m not in (EMBEDDING, HEAD)}
        return self._rounding(
            sum(polishing_seconds(qtype, work.weights(m)) for m, qtype in inside.items())
        )

    def _rounding(self, inside: float, tables: float = 0.0) -> float:
        """Turn seconds of the table's thread into seconds here.

        Args:
            inside: those of matrices of blocks.
            tables: those of embedding and head, which one GPU rounds alone.
        """
        speed, seconds = self._speed, inside + tables
        if speed.on_gpu:
            shared = inside / self._readers + tables
            return GPU_STARTS * (seconds > 0) + shared * GPU_ROUNDS
        faster: float = speed.threads**THREADS_HELP
        return seconds * speed.rounding / faster


def _installed(target: Target) -> bool:
    """Tell whether the engine of a format can be asked."""
    try:
        return all(map(version, target.packages))
    except PackageNotFoundError:
        return False
