"""Statistics of a model that bitquilt has no tables of: collected once, kept on the disk.

They are of the parameters of transformers' model, so that bases of all formats share them. What
memory cannot hold at once is summed in several passes over the text, some matrices in each.

Letters: N windows of L tokens, V vocabulary, R rows of a matrix, C columns.
"""

from __future__ import annotations

import itertools
import json

import torch
from torch import Tensor, nn

from bitquilt.bases.fisher import FisherProducts
from bitquilt.bases.partners import Unit
from bitquilt.bases.products import InputSums
from bitquilt.bases.reading import BaseReading
from bitquilt.calibration.block_moments import SUM_SLABS
from bitquilt.calibration.packed_moment import DIAGONAL, mirrored, pack_moment, unpack_moment
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir, under

FISHER = "fisher"


class ReadSums:
    """What text leaves of every matrix, but for the second moments."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._sums: dict[Unit, InputSums] = {}
        self._rows: dict[Unit, Tensor] = {}

    def add(self, products: FisherProducts) -> None:
        """Take what a part of the moments came with; the same of a later part is the same."""
        for unit, own in products.sums.items():
            self._sums[unit] = InputSums(own.squares.cpu(), own.count)
        self._rows |= {unit: own.cpu() for unit, own in products.rows.items()}

    def save(self, work: WorkDir, model: nn.Module, parts: int, reading: BaseReading) -> None:
        """Keep them; this says that all is there."""
        tokens = reading.tokens.numel()
        tensors: dict[str, Tensor] = {}
        for unit, sums in self._sums.items():
            key = key_of(unit)
            tensors[f"squares/{key}"] = sums.squares
            tensors[f"counts/{key}"] = torch.tensor(sums.count, dtype=torch.float64)
        for unit, rows in self._rows.items():
            tensors[f"rows/{key_of(unit)}"] = rows / tokens
        for name, columns in reading.lookups.columns.items():
            tensors[f"columns/{name}"] = columns / tokens
            tensors[f"tokens/{name}"] = reading.lookups.tokens[name] / tokens
        facts = {"passes": str(parts), **facts_of(model)}
        work.save(FISHER, tensors, facts)


def keep_statistics(reading: BaseReading, work: WorkDir, progress: Progress) -> None:
    """Run text through a model, forward and back, and leave the moments of its matrices.

    Args:
        reading: of a model that computes in float32, in a way that it found.
        work: where moments go.
        progress: told of a stage.

    Raises:
        UserError: the model's own code cannot be differentiated.
    """
    sums, parts = ReadSums(), itertools.count()

    def take(_: int, products: FisherProducts) -> None:
        _save_moments(work, next(parts), products, reading.tokens.numel())
        sums.add(products)

    with progress.stage("Reading text, forward and back", reading.work, "moments"):
        reading.run(take, progress.advance)
    sums.save(work, reading.model, next(parts), reading)


def facts_of(model: nn.Module) -> dict[str, str]:
    """Return the parameter that makes logits, if the model says it, and the width of its stream."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    names = (name for name, one in model.named_parameters() if head and one is head.weight)
    width = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    return {"head": next(names, ""), "width": str(width)}


def _save_moments(work: WorkDir, number: int, products: FisherProducts, tokens: int) -> None:
    """Keep what one pass summed."""
    tensors: dict[str, Tensor] = {}
    facts = {}
    for place, (readers, moment) in enumerate(products.moments.items()):
        if moment.weight > 0:
            whole = mirrored(moment.total, SUM_SLABS).div_(float(moment.weight))
            tensors |= pack_moment(f"inputs/{place}", whole)
            tensors[f"weights/{place}"] = moment.weight.cpu()
            facts[f"inputs/{place}"] = json.dumps([key_of(unit) for unit in readers])
    for unit, outputs in products.outputs.items():
        tensors |= pack_moment(f"outputs/{key_of(unit)}", outputs.div_(tokens))
    if tensors:
        work.save(f"moments/{number}", tensors, facts)


def key_of(unit: Unit) -> str:
    """Return the name that a matrix has in artefacts."""
    return f"{unit.parameter}:{unit.index}:{int(unit.transposed)}"


class BaseStatistics:
    """What :func:`keep_statistics` left, read for one matrix at a time."""

    def __init__(self, work: WorkDir) -> None:
        """Read what is small."""
        self._work = work
        facts = work.facts(FISHER)
        self.head: str = facts["head"]
        """The parameter that makes logits; empty where the model does not say."""
        self.width = int(facts["width"])
        """Numbers of the residual stream."""
        self._sums = work.load(FISHER)
        self._inputs: dict[str, list[tuple[str, str]]] = {}
        self._outputs: dict[str, str] = {}
        for number in range(int(facts["passes"])):
            if not work.has(artefact := f"moments/{number}"):
                continue
            for place, units in work.facts(artefact).items():
                for key in json.loads(units):
                    self._inputs.setdefault(key, []).append((artefact, place))
            with work.open(artefact) as handle:
                for key in handle.keys():  # noqa: SIM118
                    if key.startswith("outputs/") and key.endswith(f"/{DIAGONAL}"):
                        self._outputs[key.removesuffix(f"/{DIAGONAL}")] = artefact

    def sums(self) -> dict[Unit, InputSums]:
        """Return the plain sums of squares of what each matrix read."""
        found = {}
        for name, squares in under("squares/", self._sums).items():
            parameter, index, transposed = name.rsplit(":", 2)
            count = float(self._sums[f"counts/{name}"])
            unit = Unit(parameter, int(index), transposed == "1")
            found[unit] = InputSums(squares, count)
        return found

    def rows(self, unit: Unit) -> Tensor | None:
        """Return E[g²] of each output of a matrix, float64 [R]; None where nothing came back."""
        return self._sums.get(f"rows/{key_of(unit)}")

    def looked_up(self, parameter: str) -> tuple[Tensor, Tensor] | None:
        """Return E[g²] [C] of an embedding's columns, and the share of each row [R]."""
        if f"columns/{parameter}" not in self._sums:
            return None
        return self._sums[f"columns/{parameter}"], self._sums[f"tokens/{parameter}"]

    def inputs_of(self, unit: Unit) -> tuple[tuple[str, str], ...]:
        """Return what stands for the inputs of a matrix: equal where it shares them with others."""
        return tuple(self._inputs.get(key_of(unit), ()))

    def hessian(self, unit: Unit) -> Tensor | None:
        """Return the mean of x xᵀ, weighted, float32 [C, C]; None where nothing came back."""
        total, weight = None, 0.0
        for artefact, place in self.inputs_of(unit):
            with self._work.open(artefact) as handle:
                own = unpack_moment(place, handle.get_tensor)
                share = float(handle.get_tensor(place.replace("inputs/", "weights/")))
            total = own.mul_(share) if total is None else total.add_(own, alpha=share)
            weight += share
        return None if total is None else total.div_(weight)

    def output_moment(self, unit: Unit) -> Tensor | None:
        """Return E[g gᵀ] of the outputs of a matrix, float32 [R, R]; None where R is large."""
        name = f"outputs/{key_of(unit)}"
        if name not in self._outputs:
            return None
        with self._work.open(self._outputs[name]) as handle:
            return unpack_moment(name, handle.get_tensor)
