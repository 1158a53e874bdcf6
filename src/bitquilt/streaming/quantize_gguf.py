"""``bitquilt quantize FILE.gguf --imatrix``: any architecture, any size, no model in memory.

Read :func:`quantize_gguf` first. One pass over a sample of all rows, and over the matrices that
write to the residual stream, predicts what each type costs each matrix; an exact knapsack chooses;
a second pass rounds with ggml's own functions and writes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitquilt.allocation.budget import Budget, budgets_of, label_of
from bitquilt.allocation.preset_names import asked_preset
from bitquilt.config import QuantizeConfig
from bitquilt.errors import UserError
from bitquilt.gguf.container import aligned
from bitquilt.gguf.ggml_type import GgmlType
from bitquilt.gguf.header import part_name
from bitquilt.gguf.imatrix import read_imatrix
from bitquilt.models.sources.resolve import model_name
from bitquilt.runtime.files import refuse_file, require_room
from bitquilt.runtime.progress import Progress
from bitquilt.streaming import ggml
from bitquilt.streaming.costs import matrix_errors
from bitquilt.streaming.importance import EMBEDDING, importance_of
from bitquilt.streaming.mix import (
    Mix,
    NatsOfTypes,
    all_kinds,
    best_mix,
    candidate_kinds,
    preset_mix,
    recipe_mix,
    recipe_pins,
)
from bitquilt.streaming.residual import ResidualStream
from bitquilt.streaming.source import GgufSource
from bitquilt.streaming.writing import OutputFile
from bitquilt.targets import GGUF
from bitquilt.targets.destination import check_file

if TYPE_CHECKING:
    from bitquilt.allocation.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class GgufPlan:
    """A file to be made of a GGUF file and an importance matrix."""

    label: str
    """For the file's name: ``4.5bit``, ``20GB``, ``Q4_K_M``."""
    nbytes: int
    """Bytes of all its parts."""
    bits: float
    """Bits per weight of the tensors, as llama.cpp counts them."""
    types: Mapping[str, str]
    """The type of every matrix, by its name in the file."""
    predicted_kl: float | None
    """Nats per token that rounding is predicted to cost: to compare mixes of one model by; None
    where a preset or a recipe left nothing to predict for."""
    kept: Mapping[str, str]
    """Tensors that stay as they are → why."""
    without_importance: Sequence[str]
    """Matrices that the importance matrix has no entry for."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class GgufResult:
    """A file that was made of a GGUF file or a base."""

    paths: Sequence[Path]
    """The file, or its parts."""
    source: Path
    """What it was made from: the file, or the first part."""
    plan: GgufPlan
    seconds: float
    """What rounding and writing took."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        paths = [str(path) for path in self.paths]
        source = str(self.source)
        return {"paths": paths, "source": source, "seconds": self.seconds, **self.plan.to_dict()}


def quantize_gguf(
    model: str | Path,
    config: QuantizeConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> list[GgufResult]:
    """Quantize a GGUF file of whatever architecture with an importance matrix, as a stream.

    The model is never run, and neither it nor torch is loaded. Files are not measured, either.

    Args:
        model: a GGUF file of BF16, F16 or F32, or any part of a split one.
        config: what is wanted; its ``imatrix`` is needed.
        progress: told what goes on; stderr if not given.
        options: fields of :class:`bitquilt.QuantizeConfig`, instead of a config.

    Returns:
        A result for each budget.

    Raises:
        UserError: bad input, a size that cannot be met, a full disk: one sentence.
    """
    run = _Run(model, QuantizeConfig.of(config, options), progress or Progress())
    plans = run.plans()
    require_room(run.output, sum(plan.nbytes for plan in plans))
    places = [run.destination(plan) for plan in plans]
    return [run.write(plan, place) for plan, place in zip(plans, places, strict=True)]


def plan_gguf_files(
    model: str | Path,
    config: QuantizeConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> list[GgufPlan]:
    """Give the exact sizes and types that :func:`quantize_gguf` would write.

    It takes and raises what :func:`quantize_gguf` does.
    """
    return _Run(model, QuantizeConfig.of(config, options), progress or Progress()).plans()


class _Run:
    """One command on one source."""

    def __init__(self, model: str | Path, config: QuantizeConfig, progress: Progress) -> None:
        """Read headers and importance; whatever is wrong with them is refused here."""
        if config.imatrix is None:
            raise UserError("a GGUF file is quantized as a stream with --imatrix=imatrix.gguf")
        path, where = Path(model).expanduser(), Path(config.imatrix).expanduser()
        if not path.is_file():
            raise UserError(f"{model} is not a GGUF file; with --imatrix, give the model's file")
        self.output = Path(config.output)
        refuse_file(self.output, "--output")
        self.config, self.progress = config, progress
        self.threads = config.threads or os.cpu_count() or 1
        self.source = GgufSource(path)
        if not self.source.matrices:
            raise UserError(f"{path} has no matrix that could be quantized; give another model")
        imatrix = read_imatrix(where)
        self.importance = importance_of(self.source, imatrix, str(where))
        self.file = OutputFile(self.source, imatrix, where.name)
        self._say()

    def _say(self) -> None:
        missing = self._without_importance()
        if missing:
            self.progress.say(
                f"The importance matrix has no entry for {_some(missing)}, so all their inputs "
                "count alike"
            )
        partly = [name for name, own in self.importance.items() if own.unreached]
        if partly:
            self.progress.say(
                f"No token reached some experts of {_some(partly)}; they get the average "
                "importance of the other experts"
            )
        whys: dict[str, list[str]] = {}
        for name, why in self.source.kept.items():
            whys.setdefault(why, []).append(name)
        for why, names in whys.items():
            self.progress.say(f"{_some(names)} kept as in the source: {why}")

    def _without_importance(self) -> list[str]:
        known = {*self.importance}
        if not self.source.tied:
            known.add(EMBEDDING)  # its rows are looked up: nothing is multiplied with them
        return [name for name in self.source.matrices if name not in known]

    def plans(self) -> list[GgufPlan]:
        """Decide sizes and mixes."""
        recipe, preset = self._recipe()
        budgets = budgets_of(self.config)
        if preset is not None:
            return [self._plan(preset_mix(self.source, preset), None, None)]
        if recipe is not None and not budgets:
            return [self._plan(recipe_mix(self.source, recipe, GGUF), None, None)]
        pins = {} if recipe is None else recipe_pins(self.source, recipe, GGUF)
        sets = [self._candidates(budget, pins) for budget in budgets]
        nats = self._nats(sets)
        plans = []
        for own, budget in zip(sets, budgets, strict=True):
            costs = {name: {kind: nats[name][kind] for kind in own[name]} for name in own}
            mix = best_mix(self.source, costs, self._capacity(budget))
            predicted = sum(costs[name][kind] for name, kind in mix.items())
            plans.append(self._plan(mix, predicted, budget.bits))
        return plans

    def _recipe(self) -> tuple[Recipe | None, str | None]:
        """The recipe or the preset that was asked for."""
        preset = asked_preset(self.config)
        if self.config.recipe is None or preset is not None:
            return None, preset
        from bitquilt.allocation.recipe import read_recipe  # which loads torch

        recipe = read_recipe(Path(self.config.recipe))
        recipe.refuse_correction()
        return recipe, None

    def _capacity(self, budget: Budget) -> int:
        """Bytes that the matrices may take in the file, alignment included."""
        beside = self.file.kept_bytes if budget.size is None else self.file.fixed_bytes
        return budget.nbytes(self._weights()) - beside

    def _weights(self) -> int:
        """All weights of the model's tensors."""
        tensors = self.source.tensors.values()
        return sum(math.prod(tensor.shape) for tensor in tensors)

    def _candidates(self, budget: Budget, pins: Mix) -> dict[str, list[GgmlType]]:
        matrices = self.source.matrices
        least = {name: all_kinds(self.source, name, pins)[0] for name in matrices}
        capacity = self._capacity(budget)
        if sum(aligned(matrices[name].nbytes(kind)) for name, kind in least.items()) > capacity:
            total = self.file.total_bytes(least)
            raise UserError(
                f"{budget} is too small: the smallest possible file of {self.source.name} has "
                f"{total:,} bytes; ask for --size={total}B or more"
            )
        return candidate_kinds(self.source, capacity, pins)

    def _nats(self, sets: Sequence[Mapping[str, Sequence[GgmlType]]]) -> NatsOfTypes:
        """Predict what every candidate costs; this reads the matrices for the first time."""
        kinds = {
            name: list(dict.fromkeys(kind for own in sets for kind in own[name]))
            for name in self.source.matrices
        }
        for kind in {kind for own in kinds.values() for kind in own}:
            ggml.prepare(kind)
        stream = ResidualStream(self.source, self.importance)
        writers = stream.writers()
        with (
            self.progress.stage("Reading the model", len(kinds) + len(writers), "costs"),
            ThreadPoolExecutor(self.threads) as pool,
        ):
            measured = pool.map(stream.measure, writers)
            errors = pool.map(
                lambda name: matrix_errors(
                    self.source, self.source.matrices[name], self.importance.get(name), kinds[name]
                ),
                kinds,
            )
            for _ in measured:
                self.progress.advance()
            stream.follow()
            nats = {}
            for name, found in zip(kinds, errors, strict=True):
                nats[name] = {
                    kind: stream.nats(self.source.matrices[name], found, error)
                    for kind, error in found.errors.items()
                }
                self.progress.advance()
        return nats

    def _plan(self, mix: Mix, predicted: float | None, bits: float | None) -> GgufPlan:
        return GgufPlan(
            label=label_of(bits, self.config.size, self.config.recipe),
            nbytes=self.file.total_bytes(mix),
            bits=8 * self.file.data_bytes(mix) / self._weights(),
            types={name: kind.name for name, kind in mix.items()},
            predicted_kl=predicted,
            kept=self.source.kept,
            without_importance=self._without_importance(),
        )

    def destination(self, plan: GgufPlan) -> Path:
        """Return where a file goes.

        Raises:
            UserError: something else is there.
        """
        whole = part_name(self.source.name, 0, 1)
        path = self.output / f"{model_name(Path(whole))}-{plan.label}{GGUF.suffix}"
        for place in self.file.paths(path):
            for part in self.source.parts:
                check_file(place, part.path)
        return path

    def write(self, plan: GgufPlan, path: Path) -> GgufResult:
        """Round all matrices and write a file; this reads them for the second time."""
        started = time.monotonic()
        mix = {name: GgmlType[kind] for name, kind in plan.types.items()}
        weights = sum(matrix.weights for matrix in self.source.matrices.values())
        with self.progress.stage(f"Writing {path.name}", weights, "rounding"):
            self.file.write(mix, self.importance, path, self.threads, self.progress)
        return GgufResult(
            paths=self.file.paths(path),
            source=self.source.header.path,
            plan=plan,
            seconds=time.monotonic() - started,
        )


def _some(names: Sequence[str], most: int = 3) -> str:
    """A few names, and how many others there are."""
    more = f" and {len(names) - most} others" if len(names) > most else ""
    return ", ".join(names[:most]) + more
