"""How long a token takes on each type here: small files are written, run, and remembered.

Files have the model's own shapes with arbitrary numbers in them, for numbers do not change the
time. They run in the engine that will run the result, as ``bitquilt bench`` runs it. Seconds are
kept in the user's cache by machine, engine and config, so every type is timed once.
"""

from __future__ import annotations

import hashlib
import json
import platform
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from platformdirs import user_cache_path

from bitquilt import qtypes
from bitquilt.allocation.plan import STITCHERS, Plan
from bitquilt.allocation.speed_limit import least_seconds
from bitquilt.allocation.speed_model import SpeedModel, TimedFile, TypedShape
from bitquilt.engines import Engine, GenerationRequest, Sampling, open_engine
from bitquilt.engines.llamacpp_backend import physical_cores
from bitquilt.errors import UserError
from bitquilt.models.checkpoint import EMBEDDING, Checkpoint
from bitquilt.models.names import layer_of
from bitquilt.qtypes.qtype import Packed, PackedSource
from bitquilt.rounding.nearest import fit
from bitquilt.runtime.files import atomic_write
from bitquilt.runtime.hardware import processor
from bitquilt.runtime.progress import Progress

PROMPT, ANSWER = 128, 32
"""Tokens. Short answers: the middle one of many is little disturbed."""
TURNS, LEAST_TURNS, SECONDS = 16, 4, 1.0
"""Answers of a file: so many, or as many as there is time for."""
REPEATS = 2
"""Times that each file is run, all others between: what else goes on seldom meets it twice."""
ROUNDS = 2
"""Files, for every type of the shape that has the most."""
RELIABLE = 0.1
"""Error up to which timings are kept for the next time."""
MOST_WEIGHTS = 400_000_000
"""Larger models are timed with fewer blocks: this is more than a processor's cache holds."""
PATTERN_ROWS = 64
"""Different rows of a matrix; they repeat."""
PACKAGES = {"gguf": ("xllamacpp",), "mlx": ("mlx", "mlx-lm")}
SUFFIX = {"gguf": ".gguf", "mlx": "-mlx"}

Shape = tuple[int, int]


@dataclass(frozen=True)
class SpeedLimit:
    """A speed that files have to reach here."""

    rate: float
    """Tokens a second, of one answer."""
    model: SpeedModel
    shapes: Mapping[str, Shape]
    """Of the matrices that every token reads."""

    @property
    def seconds(self) -> float:
        """That the matrices may take for a token."""
        return 1 / self.rate - self.model.base

    def predicted(self, mix: Mapping[str, str]) -> float:
        """Tokens a second of a mix, module path → type name."""
        paces = (self.model.paces[TypedShape(*shape, mix[m])] for m, shape in self.shapes.items())
        return 1 / (self.model.base + sum(paces))

    def fast_enough(self, mixes: Mapping[str, Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
        """Those of some mixes, by name, that are as fast as that."""
        return {name: mix for name, mix in mixes.items() if self.predicted(mix) >= self.rate}

    def timed(self, plan: Plan) -> Plan:
        """The plan with the seconds of everything that it may choose.

        Raises:
            UserError: no mix of its size is so fast.
        """
        if plan.space is None:
            return plan
        menu = self.model.timed(plan.space.candidate_sets, self.shapes)
        most = 1 / (self.model.base + least_seconds(menu, plan.space.capacity))
        if most < self.rate:
            raise UserError(
                f"{plan.label}: no mix of that size makes {self.rate:g} tokens a second on this "
                f"machine, the fastest about {most:.3g}; ask for --min-tokens-per-second "
                f"{0.95 * most:.3g}, or for a smaller file"
            )
        return replace(plan, space=replace(plan.space, candidate_sets=menu))


def read_each_token(checkpoint: Checkpoint) -> dict[str, Shape]:
    """Module path → (rows, columns) of the matrices that generating a token multiplies by."""
    looked_up = () if checkpoint.tied else (EMBEDDING,)
    return {m: shape for m, shape in checkpoint.matrices.items() if m not in looked_up}


def speed_limit(
    rate: float,
    checkpoint: Checkpoint,
    target: str,
    candidates: Mapping[str, Iterable[str]],
    progress: Progress,
) -> SpeedLimit:
    """A limit of speed, with how long tokens take on these types; timed now where not known yet.

    Args:
        rate: tokens a second that files have to reach.
        checkpoint: the model.
        target: ``gguf`` or ``mlx``.
        candidates: module path → type names.
        progress: told how it goes.

    Raises:
        EngineMissingError: the target's engine is not installed.
    """
    kept = user_cache_path("bitquilt") / "speed" / f"{_key(checkpoint, target)}.json"
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
    files = ROUNDS * max(map(len, missing.values()))
    if files:
        designs = _designs(checkpoint, wanted, missing, files)
        with progress.stage(f"Timing types for {target}", REPEATS * files):
            runs += [
                _best(visits) for visits in zip(*_visits(designs, target, progress), strict=True)
            ]
    model = SpeedModel.fit(runs)
    progress.say(
        f"{len(runs)} {target} files timed on this machine predict one another's speed with an "
        f"error of {model.error:.1%}"
    )
    if model.error > RELIABLE:
        progress.say("it does too much else to be timed well: that will be tried again next time")
    elif files:
        with atomic_write(kept) as beside:
            beside.write_text(json.dumps([_to_json(run) for run in runs]))
    return SpeedLimit(rate, model, shapes)


def _key(checkpoint: Checkpoint, target: str) -> str:
    """Of all that seconds depend on."""
    machine = [processor(), platform.machine(), physical_cores()]
    what = [machine, target, _versions(target), checkpoint.config, MOST_WEIGHTS]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def _versions(target: str) -> list[str]:
    """Of the engine; an engine that is missing says so when it is started."""
    try:
        return [version(package) for package in PACKAGES[target]]
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
    deep = _cut(checkpoint, _affordable(checkpoint))
    shallow = deep if deep.layers == checkpoint.layers else _cut(checkpoint, deep.layers // 2)
    return [
        (shallow if n % 2 else deep, {shape: own[n] for shape, own in turns.items()})
        for n in range(files)
    ]


def _affordable(checkpoint: Checkpoint) -> int:
    """Blocks that are timed."""
    sizes = {module: rows * columns for module, (rows, columns) in checkpoint.matrices.items()}
    in_blocks = sum(size for module, size in sizes.items() if layer_of(module) is not None)
    room = MOST_WEIGHTS - (sum(sizes.values()) - in_blocks)
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


def _visits(
    designs: Sequence[tuple[Checkpoint, dict[Shape, str]]], target: str, progress: Progress
) -> Iterator[list[TimedFile]]:
    """All files, timed again and again."""
    for _ in range(REPEATS):
        visit = []
        for sample, mix in designs:
            visit.append(_timed(sample, target, mix))
            progress.advance()
        yield visit


def _best(visits: Iterable[TimedFile]) -> TimedFile:
    return min(visits, key=lambda run: run.seconds)


def _timed(checkpoint: Checkpoint, target: str, mix: Mapping[Shape, str]) -> TimedFile:
    """Write a file whose matrices are on these types, and time it."""
    read = read_each_token(checkpoint)
    allocation = {m: mix.get(shape, "BF16") for m, shape in checkpoint.matrices.items()}
    with tempfile.TemporaryDirectory(prefix="bitquilt-") as folder:
        path = Path(folder) / f"timed{SUFFIX[target]}"
        STITCHERS[target].write(checkpoint, allocation, random_weights(checkpoint), path, "{}")
        seconds = token_seconds(path)
    matrices: dict[TypedShape, int] = {}
    for shape in read.values():
        cell = TypedShape(*shape, mix[shape])
        matrices[cell] = matrices.get(cell, 0) + 1
    return TimedFile(matrices, seconds)


def random_weights(checkpoint: Checkpoint) -> PackedSource:
    """Matrices of a model's shapes on any type, with arbitrary numbers."""

    def packed(module: str, qtype: str) -> Packed:
        rows, columns = checkpoint.matrices[module]
        return {
            name: part.repeat(-(-rows // len(part)), 1)[:rows]
            for name, part in _pattern(columns, qtype).items()
        }

    return packed


@cache
def _pattern(columns: int, qtype: str) -> Packed:
    """Rows with numbers of the usual size."""
    weights = torch.randn(PATTERN_ROWS, columns, generator=torch.Generator().manual_seed(0))
    return qtypes.get(qtype).pack(fit(qtypes.get(qtype), weights * columns**-0.5, None))


def token_seconds(path: Path) -> float:
    """Seconds for one more token of an answer: the middle one of several answers' means."""
    with open_engine(path) as engine:
        rng = random.Random(0)
        prompt = [rng.randrange(engine.info.vocabulary) for _ in range(PROMPT)]
        answers, started = [_answer(engine, prompt, 0)], time.monotonic()
        while len(answers) < TURNS and (
            len(answers) < LEAST_TURNS or time.monotonic() - started < SECONDS
        ):
            answers.append(_answer(engine, prompt, len(answers)))
    return median(answers[1:])


def _answer(engine: Engine, prompt: Sequence[int], seed: int) -> float:
    """The same, of one answer, once the engine keeps the prompt: then all its steps are alike."""
    started = time.perf_counter()
    sampling = Sampling(temperature=1.0, top_k=40, seed=seed)
    with engine.stream([GenerationRequest(prompt, sampling, ANSWER)]) as stream:
        tokens = sum(1 for _ in stream)
    return (time.perf_counter() - started) / tokens
