"""The layer bank: every matrix on every candidate type, packed, with what each costs.

Matrices that read one input are rounded together, from one factorization of its Hessian, and are
one artefact, ``bank/<input>``: parts under ``<module>/<qtype>/<part>``, and as facts how each was
rounded and what that is predicted to cost. So a run that was stopped rounds together what it would
have without the stop, and ends with the same bytes. What is missing is added; nothing is rounded
twice. What was finished is beside it, ``finished/<input>``: drafts stay as the search knew them.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import TypeVar

import torch

from bitquilt import qtypes
from bitquilt.calibration.collect import input_of
from bitquilt.calibration.statistics import CalibrationStats
from bitquilt.models.checkpoint import EMBEDDING, HEAD, Checkpoint
from bitquilt.qtypes.qtype import Packed
from bitquilt.rounding import kernels
from bitquilt.rounding.hessian import COLUMN_GROUP, Factor, factorize
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.round_layers import RoundingJob, draft, improve, kind_of
from bitquilt.runtime.device import compute_device, record_event, side_stream
from bitquilt.runtime.malloc import trim
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.threads import BackgroundTask
from bitquilt.runtime.workdir import WorkDir

CPU_BATCH = 1 << 28
"""Bytes, about, of weights and Hessians that are in memory together on a CPU: those of many layers
of a tiny model, of one input of others."""
DEVICE_BATCH = 2 << 30
"""The same elsewhere."""
WEIGHT_BYTES, HESSIAN_BYTES = 4, 16
"""What a weight takes, and an entry of a Hessian with its factors."""
CPU_CELLS = 1 << 26
"""Weights, times types, rounded together on a CPU."""
DEVICE_CELLS = 1 << 29
"""The same elsewhere."""

DRAFTS, FINISHED = "bank", "finished"
"""Folders of artefacts."""

Candidates = Mapping[str, Sequence[str]]
"""Module path → names of the types it may be put on."""
Wanted = Mapping[str, Candidates]
"""Input → those of the matrices that read it."""


@dataclass(frozen=True)
class BankCell:
    """One matrix on one type."""

    divergence: float
    """Predicted, in nats per token, of how it was rounded for the search."""
    rounding: str
    """How it was to be rounded: one of :data:`bitquilt.rounding.METHODS`."""
    kept: str
    """How it is: ``nearest`` where that was no worse."""


Key = tuple[str, str]
"""Module path and type name."""
Rounded = tuple[Packed, BankCell]
"""A matrix on a type, and what to know of it."""


class LayerBank:
    """The packed matrices of one checkpoint in a work directory."""

    def __init__(
        self, checkpoint: Checkpoint, work: WorkDir, rounding: str, progress: Progress
    ) -> None:
        """Open the bank.

        Args:
            checkpoint: the model.
            work: where the moments are and the matrices go.
            rounding: one of :data:`bitquilt.rounding.METHODS`.
            progress: told by name what could not be rounded as usual.
        """
        self.checkpoint = checkpoint
        self.work = work
        self.moments = CalibrationStats(checkpoint, work)
        self._rounding = rounding
        self._progress = progress
        if rounding == "nearest" or compute_device().type != "cuda":
            return
        if (cause := kernels.compile_error()) is not None:
            instead = "torch's operations round instead, in half as much time again"
            progress.say(f"bitquilt's kernels for GPUs do not compile here ({cause}); {instead}")

    def build(self, candidates: Candidates, progress: Progress) -> None:
        """Round what is not there yet, well enough to choose from.

        What comes after feedback costs several times as much and changes little about what is
        better than what, so ``best`` does it for what was chosen (:meth:`finish`).

        Args:
            candidates: what to round.
            progress: advances once per (matrix, type).
        """
        feedback = self._rounding != "nearest"
        missing: dict[str, dict[str, list[str]]] = {}
        for module, names in candidates.items():
            have = self.cells(module).keys()
            for _ in have & set(names):
                progress.advance()
            if new := [name for name in names if name not in have]:
                missing.setdefault(input_of(module), {})[module] = new
        alone = [owner for owner in missing if not self._feeds_back(owner)]
        with BackgroundTask() as aside:
            for owner in alone:
                for module, names in missing.pop(owner).items():
                    self._round_alone(module, names, progress, aside)
            for owners in self._batches(missing):
                self._draft(owners, missing, feedback, progress, aside)
                _forget_sizes()

    def finish(self, chosen: Candidates, progress: Progress) -> None:
        """Bring what was chosen from drafts to ``best``, if that was asked for.

        Args:
            chosen: what to finish; the bank has all of it.
            progress: advances once per (matrix, type).
        """
        drafts: dict[str, dict[str, list[str]]] = {}
        for module, names in chosen.items():
            owner, have = input_of(module), self.cells(module, FINISHED)
            drafted = self._rounding == "best" and self._feeds_back(owner)
            # a float has nothing to finish
            rough = [
                name
                for name in names
                if drafted and name not in have and kind_of(qtypes.get(name)) is not None
            ]
            if rough:
                drafts.setdefault(owner, {})[module] = rough
            for _ in set(names) - set(rough):
                progress.advance()
        with BackgroundTask() as aside:
            for owners in self._batches(drafts):
                self._improve(owners, drafts, progress, aside)
                _forget_sizes()

    def _batches(self, owners: Iterable[str]) -> Iterator[list[str]]:
        """Inputs of equal width, as many at a time as memory is meant for."""
        room = CPU_BATCH if compute_device().type == "cpu" else DEVICE_BATCH
        shapes = self.checkpoint.matrices
        read = Counter[str]()
        for module, shape in shapes.items():
            read[input_of(module)] += math.prod(shape)

        def width(owner: str) -> int:
            return shapes[owner][1]

        def size(owner: str) -> int:
            return WEIGHT_BYTES * read[owner] + HESSIAN_BYTES * width(owner) ** 2

        for _, own in groupby(sorted(owners, key=width), width):
            yield from split(own, size, room)

    def _feeds_back(self, owner: str) -> bool:
        """Whether error feedback makes sense for what reads an input.

        Not for an embedding or a head: tokens are read and predicted at places so different that
        one Hessian for all rows does not help (docs/decisions/gptq.md). Nor for rows that are
        no whole number of groups, which take no type but the floats.
        """
        columns = self.checkpoint.matrices[owner][1]
        return owner not in (EMBEDDING, HEAD) and columns % COLUMN_GROUP == 0

    def _draft(
        self,
        owners: Sequence[str],
        wanted: Wanted,
        feedback: bool,
        progress: Progress,
        aside: BackgroundTask,
    ) -> None:
        """Round what reads some inputs for the first time."""
        method = "gptq" if feedback else "nearest"

        def work(
            keys: Sequence[Key], jobs: Sequence[RoundingJob], factor: Factor
        ) -> Iterator[Rounded]:
            for (module, _), job, one in zip(
                keys, jobs, draft(jobs, factor, feedback), strict=True
            ):
                assert one.costs is not None
                divergence = self.moments.divergence_of_rows(module, one.costs)
                yield job.qtype.pack(one.fields), BankCell(divergence, method, one.method)

        self._round(owners, wanted, work, DRAFTS, progress, aside)

    def _improve(
        self, owners: Sequence[str], wanted: Wanted, progress: Progress, aside: BackgroundTask
    ) -> None:
        """Finish drafts of what reads some inputs; the search's figures stay those of drafts."""

        def work(
            keys: Sequence[Key], jobs: Sequence[RoundingJob], factor: Factor
        ) -> Iterator[Rounded]:
            device = factor.groups.device
            drafts = [
                job.qtype.unpack(parts)
                for job, parts in zip(
                    jobs, moved([self.packed(*k) for k in keys], device), strict=True
                )
            ]
            cells = {module: self.cells(module) for module in {module for module, _ in keys}}
            done = improve(jobs, drafts, factor)
            for (module, name), job, one in zip(keys, jobs, done, strict=True):
                cell = replace(cells[module][name], rounding="best", kept=one.method)
                yield job.qtype.pack(one.fields), cell

        self._round(owners, wanted, work, FINISHED, progress, aside)

    def _round(
        self,
        owners: Sequence[str],
        wanted: Wanted,
        work: Callable[[Sequence[Key], Sequence[RoundingJob], Factor], Iterable[Rounded]],
        folder: str,
        progress: Progress,
        aside: BackgroundTask,
    ) -> None:
        """Do ``work`` on what reads some inputs, under one factorization, and keep the results.

        They are written while the next inputs' are worked on: a disk takes as long as a GPU.
        """
        room = CPU_CELLS if compute_device().type == "cpu" else DEVICE_CELLS
        keys, jobs, factor = self._jobs(owners, wanted)
        by_kind = sorted(range(len(jobs)), key=lambda i: repr(kind_of(jobs[i].qtype)))
        done: dict[Key, Rounded] = {}
        for part in split(by_kind, lambda i: jobs[i].weight.numel(), room):
            own = [keys[i] for i in part]
            packed, cells = zip(*work(own, [jobs[i] for i in part], factor), strict=True)
            aside.do(fetch, done, own, packed, cells, record_event())
            for _ in own:
                progress.advance()
        aside.do(self._add, done, folder)

    def _jobs(
        self, owners: Sequence[str], wanted: Wanted
    ) -> tuple[list[Key], list[RoundingJob], Factor]:
        """What to round of some inputs' readers, as (module, type) and as jobs, and the factor."""
        device = compute_device()
        hessians = torch.stack([self.moments.hessian(owner) for owner in owners]).to(device)
        factor = factorize(hessians, owners, self._progress)
        keys, jobs = [], []
        for place, owner in enumerate(owners):
            for module, names in wanted[owner].items():
                weight = self.checkpoint.load(f"{module}.weight").to(device)
                keys += [(module, name) for name in names]
                jobs += [RoundingJob(weight, qtypes.get(name), place) for name in names]
        return keys, jobs, factor

    def _round_alone(
        self, module: str, names: Sequence[str], progress: Progress, aside: BackgroundTask
    ) -> None:
        """A matrix to its nearest levels."""
        weight = self.checkpoint.load(f"{module}.weight").to(compute_device())
        hessian, importance = self.moments.hessian(module), self.moments.importance(module)
        done: dict[Key, Rounded] = {}
        for name in names:
            qtype = qtypes.get(name)
            packed = qtype.pack(fit(qtype, weight, importance))
            divergence = self.moments.divergence(
                module, qtype.dequantize(packed).sub_(weight), hessian
            )
            cell = BankCell(divergence, self._rounding, "nearest")
            aside.do(fetch, done, [(module, name)], [packed], [cell], record_event())
            progress.advance()
        aside.do(self._add, done, DRAFTS)

    def _add(self, done: Mapping[Key, Rounded], folder: str) -> None:
        """Write inputs' artefacts again, with more (matrix, type) in them."""
        by_owner: dict[str, list[Key]] = {}
        for key in done:
            by_owner.setdefault(input_of(key[0]), []).append(key)
        for owner, keys in by_owner.items():
            artefact = f"{folder}/{owner}"
            parts = self.work.load(artefact) if self.work.has(artefact) else {}
            facts = self._facts(artefact)
            for key in keys:
                packed, cell = done[key]
                name = "/".join(key)
                parts |= {f"{name}/{part}": tensor for part, tensor in packed.items()}
                facts[name] = json.dumps(asdict(cell))
            self.work.save(artefact, parts, facts)

    def _facts(self, artefact: str) -> dict[str, str]:
        if not self.work.has(artefact):
            return {}
        with self.work.open(artefact) as handle:
            return dict(handle.metadata())

    def cells(self, module: str, folder: str = DRAFTS) -> dict[str, BankCell]:
        """Type name → what became of the matrix there, for the types that are there."""
        own = f"{module}/"
        return {
            key.removeprefix(own): BankCell(**json.loads(fact))
            for key, fact in self._facts(f"{folder}/{input_of(module)}").items()
            if key.startswith(own)
        }

    def packed(self, module: str, qtype: str) -> Packed:
        """The parts of a matrix on a type, as the search knows it."""
        return self._parts(DRAFTS, module, qtype)

    def finished(self, module: str, qtype: str) -> Packed:
        """The same as a file is to have it: as :meth:`finish` left it, if it did."""
        done = qtype in self.cells(module, FINISHED)
        return self._parts(FINISHED if done else DRAFTS, module, qtype)

    def _parts(self, folder: str, module: str, qtype: str) -> Packed:
        own = f"{module}/{qtype}/"
        with self.work.open(f"{folder}/{input_of(module)}") as handle:
            names = handle.keys()
            mine = [name for name in names if name.startswith(own)]
            return {name.removeprefix(own): handle.get_tensor(name) for name in mine}


def fetch(
    done: dict[Key, Rounded],
    keys: Sequence[Key],
    packed: Sequence[Packed],
    cells: Sequence[BankCell],
    after: torch.cuda.Event | None,
) -> None:
    """Add packed matrices to what is done, in the CPU's memory, while a GPU computes the next.

    Args:
        done: where to.
        keys: whose they are.
        packed: the matrices, on any device.
        cells: what to know of them.
        after: what :func:`record_event` said when they had been launched.
    """
    there = moved(packed, torch.device("cpu"), after)
    done |= zip(keys, zip(there, cells, strict=True), strict=True)


def _forget_sizes() -> None:
    """Give back free memory where matrices are rounded: other inputs need blocks of other sizes."""
    if compute_device().type == "cpu":
        trim()
    else:
        torch.cuda.empty_cache()


def moved(
    matrices: Sequence[Packed], device: torch.device, after: torch.cuda.Event | None = None
) -> list[Packed]:
    """Packed matrices on a device: a GPU copies faster than one thread finds pages of memory.

    Args:
        matrices: on any device.
        device: where to.
        after: where they come from a GPU that goes on, what :func:`record_event` said.
    """

    def move(parts: Packed) -> Packed:
        with side_stream(after):
            return {name: part.to(device) for name, part in parts.items()}

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(move, matrices))


Item = TypeVar("Item")


def split(items: Iterable[Item], size: Callable[[Item], int], room: int) -> Iterator[list[Item]]:
    """Items in their order, as many at a time as fit a room together; one that is larger, alone."""
    own: list[Item] = []
    taken = 0
    for item in items:
        if own and taken + size(item) > room:
            yield own
            own, taken = [], 0
        own.append(item)
        taken += size(item)
    if own:
        yield own
