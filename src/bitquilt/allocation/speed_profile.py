"""How long a token takes on each type on this machine: files are written, timed and remembered.

Files have the model's own shapes with random numbers in them, since numbers do not change the time.
They run in the engine that will run the result, as ``bitquilt bench`` runs it. Seconds are kept in
the user's cache by machine, engine and config, so every type is timed once.
"""

from __future__ import annotations

import hashlib
import json
import platform
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from bitquilt.allocation.plan import Plan
from bitquilt.allocation.solver import least_seconds
from bitquilt.allocation.space import AllocationSpace
from bitquilt.allocation.speed_model import SpeedModel, TimedFile, TypedShape
from bitquilt.allocation.timing import TimingSchedule, random_weights, token_seconds
from bitquilt.engines.llamacpp_backend import physical_cores
from bitquilt.errors import UserError
from bitquilt.models.checkpoint import EMBEDDING, Checkpoint
from bitquilt.models.names import layer_of
from bitquilt.qtypes.qtype import Allocation
from bitquilt.runtime.files import atomic_write
from bitquilt.runtime.hardware import processor
from bitquilt.runtime.progress import Progress
from bitquilt.targets import Target

Shape = tuple[int, int]


@dataclass(frozen=True)
class SpeedLimit:
    """A speed that files have to reach on this machine."""

    rate: float
    """Tokens per second of a single answer."""
    model: SpeedModel
    shapes: Mapping[str, Shape]
    """Module path → (rows, columns) of the matrices that every token reads."""

    @property
    def seconds(self) -> float:
        """Seconds that the matrices may take for a token."""
        return 1 / self.rate - self.model.base

    def predicted(self, allocation: Allocation) -> float:
        """Return the tokens per second that are predicted for an allocation."""
        paces = self.model.paces
        seconds = sum(paces[TypedShape(*s, allocation[m])] for m, s in self.shapes.items())
        return 1 / (self.model.base + seconds)

    def fast_enough(self, allocations: Mapping[str, Allocation]) -> dict[str, Allocation]:
        """Return those of some allocations, by name, that reach the speed."""
        return {name: one for name, one in allocations.items() if self.predicted(one) >= self.rate}

    def timed(self, plan: Plan) -> Plan:
        """Return the plan with the seconds of everything that it may choose.

        Raises:
            UserError: no allocation of the plan's size is so fast.
        """
        if plan.space is None:
            return plan
        sets = self.model.timed(plan.space.candidate_sets, self.shapes)
        most = 1 / (self.model.base + least_seconds(AllocationSpace.of(sets), plan.space.capacity))
        if most < self.rate:
            raise UserError(
                f"{plan.label}: no file of that size reaches {self.rate:g} tokens a second on "
                f"this machine, where the fastest reaches about {most:.3g}; ask for "
                f"--min-tokens-per-second={0.95 * most:.3g}, or for a smaller file"
            )
        return replace(plan, space=replace(plan.space, candidate_sets=sets))


def read_each_token(checkpoint: Checkpoint) -> dict[str, Shape]:
    """Return module path → (rows, columns) of the matrices that every generated token reads."""
    looked_up = () if checkpoint.tied else (EMBEDDING,)
    return {m: shape for m, shape in checkpoint.matrices.items() if m not in looked_up}


def speed_limit(
    rate: float,
    checkpoint: Checkpoint,
    target: Target,
    candidates: Mapping[str, Iterable[str]],
    progress: Progress,
    schedule: TimingSchedule | None = None,
) -> SpeedLimit:
    """Return a limit of speed, with how long tokens take on these types.

    Types that were not timed before on this machine are timed now.

    Args:
        rate: tokens per second that files have to reach.
        checkpoint: the model.
        target: the output format.
        candidates: module path → type names.
        progress: told how it goes.
        schedule: what is timed, and how often; the defaults if not given.

    Raises:
        EngineMissingError: the target's engine is not installed.
    """
    schedule = schedule or TimingSchedule()
    name = _key(checkpoint, target, schedule)
    kept = user_cache_path("bitquilt") / "speed" / f"{name}.json"
    runs = _read(kept)
    known = {cell for run in runs for cell in run.matrices}
    shapes = read_each_token(checkpoint)
    wanted: dict[Shape, list[str]] = {}
    for module, shape in shapes.items():
        wanted[shape] = list(dict.fromkeys([*wanted.get(shape, []), *candidates[module]]))
    missing = {
        shape: [name for name in names if TypedShape(*shape, name) not in known]
        for shape, names in wanted.items()
    }
    files = schedule.rounds * max(map(len, missing.values()))
    if files:
        blocks = _affordable_blocks(checkpoint, schedule.most_weights)
        designs = _designs(checkpoint, blocks, wanted, missing, files)
        with progress.stage(f"Timing types for {target}", schedule.repeats * files):
            repeats = _repeats(designs, target, schedule, progress)
            runs += [_best(one) for one in zip(*repeats, strict=True)]
    model = SpeedModel.fit(runs)
    progress.say(
        f"{len(runs)} {target} files timed on this machine predict one another's speed with an "
        f"error of {model.error:.1%}"
    )
    if model.error > schedule.most_error:
        progress.say(
            "This machine was too busy for reliable timings, so the types will be timed again "
            "next time"
        )
    elif files:
        with atomic_write(kept) as beside:
            beside.write_text(json.dumps([_to_json(run) for run in runs]))
    return SpeedLimit(rate, model, shapes)


def _key(checkpoint: Checkpoint, target: Target, schedule: TimingSchedule) -> str:
    """The hash of all that seconds depend on."""
    machine = [processor(), platform.machine(), physical_cores()]
    what = [machine, target.name, _versions(target), checkpoint.config, asdict(schedule)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def _versions(target: Target) -> list[str]:
    """The versions of the engine; an engine that is missing says so when it is started."""
    try:
        return [version(package) for package in target.packages]
    except PackageNotFoundError:
        return []


def _read(kept: Path) -> list[TimedFile]:
    """The files that were timed before."""
    if not kept.exists():
        return []
    return [
        TimedFile({TypedShape(*cell): count for *cell, count in run["matrices"]}, run["seconds"])
        for run in json.loads(kept.read_text())
    ]


def _to_json(run: TimedFile) -> dict[str, Any]:
    return {
        "matrices": [[*cell, count] for cell, count in run.matrices.items()],
        "seconds": run.seconds,
    }


def _designs(
    checkpoint: Checkpoint,
    blocks: int,
    wanted: Mapping[Shape, Sequence[str]],
    missing: Mapping[Shape, Sequence[str]],
    files: int,
) -> list[tuple[Checkpoint, dict[Shape, str]]]:
    """What to time: every shape takes its types in turn, in another order each round.

    Where a model is timed with fewer blocks, every other file has half as many: what is no
    matrix's time shows in the difference.
    """
    rng = random.Random(files)
    turns = {}
    for shape, names in wanted.items():
        own = list(missing[shape] or names)
        rounds = (rng.sample(own, len(own)) for _ in range(-(-files // len(own))))
        turns[shape] = [name for one in rounds for name in one]
    deep = _cut(checkpoint, blocks)
    shallow = deep if deep.layers == checkpoint.layers else _cut(checkpoint, deep.layers // 2)
    return [
        (shallow if n % 2 else deep, {shape: own[n] for shape, own in turns.items()})
        for n in range(files)
    ]


def _affordable_blocks(checkpoint: Checkpoint, most_weights: int) -> int:
    """The number of blocks that are timed."""
    sizes = {module: rows * columns for module, (rows, columns) in checkpoint.matrices.items()}
    in_blocks = sum(size for module, size in sizes.items() if layer_of(module) is not None)
    room = most_weights - (sum(sizes.values()) - in_blocks)
    most = int(room / (in_blocks / checkpoint.layers))
    return min(checkpoint.layers, max(2, most))


def _cut(checkpoint: Checkpoint, layers: int) -> Checkpoint:
    """The same model with its first blocks only."""
    if layers == checkpoint.layers:
        return checkpoint
    config = checkpoint.config | {"num_hidden_layers": layers}
    if types := config.get("layer_types"):
        config["layer_types"] = types[:layers]
    shapes = {n: s for n, s in checkpoint.shapes.items() if (layer_of(n) or 0) < layers}
    # the header of a GGUF source says how many blocks it has
    return replace(checkpoint, config=config, shapes=shapes, gguf_source=None)


def _repeats(
    designs: Sequence[tuple[Checkpoint, dict[Shape, str]]],
    target: Target,
    schedule: TimingSchedule,
    progress: Progress,
) -> Iterator[list[TimedFile]]:
    """All files, timed again and again."""
    for _ in range(schedule.repeats):
        timed = []
        for checkpoint, qtypes_of in designs:
            timed.append(_timed(checkpoint, target, qtypes_of, schedule))
            progress.advance()
        yield timed


def _best(repeats: Iterable[TimedFile]) -> TimedFile:
    return min(repeats, key=lambda run: run.seconds)


def _timed(
    checkpoint: Checkpoint, target: Target, qtype_of: Mapping[Shape, str], schedule: TimingSchedule
) -> TimedFile:
    """Write a file whose matrices are on these types, and time it."""
    read = read_each_token(checkpoint)
    allocation = {m: qtype_of.get(shape, "BF16") for m, shape in checkpoint.matrices.items()}
    with tempfile.TemporaryDirectory(prefix="bitquilt-") as folder:
        path = Path(folder) / f"timed{target.suffix}"
        target.write(checkpoint, allocation, random_weights(checkpoint), path, "{}")
        seconds = token_seconds(path, schedule)
    matrices: dict[TypedShape, int] = {}
    for shape in read.values():
        cell = TypedShape(*shape, qtype_of[shape])
        matrices[cell] = matrices.get(cell, 0) + 1
    return TimedFile(matrices, seconds)
