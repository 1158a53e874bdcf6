"""The layer bank: every matrix on every candidate grid, packed, with what each costs.

Matrices that read one input are rounded together, from one factorization of its Hessian, and are
one artefact, ``bank/<input>``: parts under ``<module>/<grid>/<part>``, and as facts how each was
rounded and what that is predicted to cost. So a run that was stopped rounds together what it would
have without the stop, and ends with the same bytes. What is missing is added; nothing is rounded
twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from bitquilt import grids
from bitquilt.calibration.capture import input_of
from bitquilt.calibration.moments import Moments
from bitquilt.checkpoint.checkpoint import EMBEDDING, HEAD, Checkpoint
from bitquilt.device import compute_device
from bitquilt.grids.grid import Packed
from bitquilt.progress import Step
from bitquilt.rounding.best import Job, draft, improve
from bitquilt.rounding.factor import GROUP, Factor, factorize
from bitquilt.rounding.nearest import fit
from bitquilt.workdir import WorkDir

CPU_BATCH = 1 << 28
"""Bytes, about, of inputs that go through together on a CPU: many of a tiny model, one of others."""
DEVICE_BATCH = 1 << 31
"""The same elsewhere."""
CELL_BYTES, HESSIAN_BYTES = 4, 16
"""What a weight on a grid takes while it is rounded, and an entry of a Hessian."""

Candidates = Mapping[str, Sequence[str]]
"""Module path → names of the grids it may be put on."""
Wanted = Mapping[str, Candidates]
"""Input → those of the matrices that read it."""


@dataclass(frozen=True)
class Cell:
    """One matrix on one grid."""

    divergence: float
    """Predicted, in nats per token, of how it was rounded for the search."""
    rounding: str
    """How it was to be rounded: one of :data:`bitquilt.rounding.METHODS`."""
    kept: str
    """How it is: ``nearest`` where that was no worse."""


class Bank:
    """The packed matrices of one checkpoint in a work directory."""

    def __init__(
        self, checkpoint: Checkpoint, work: WorkDir, rounding: str, say: Callable[[str], None]
    ) -> None:
        """Open the bank.

        Args:
            checkpoint: the model.
            work: where the moments are and the matrices go.
            rounding: one of :data:`bitquilt.rounding.METHODS`.
            say: told by name what could not be rounded as usual.
        """
        self.checkpoint = checkpoint
        self.work = work
        self.moments = Moments(checkpoint, work)
        self._rounding = rounding
        self._say = say

    def build(self, candidates: Candidates, step: Step) -> None:
        """Round what is not there yet, well enough to choose from.

        What comes after feedback costs several times as much and changes little about what is
        better than what, so ``best`` does it for what was chosen (:meth:`finish`).

        Args:
            candidates: what to round.
            step: called once per (matrix, grid).
        """
        feedback = self._rounding != "nearest"
        missing: dict[str, dict[str, list[str]]] = {}
        for module, names in candidates.items():
            have = self.cells(module).keys()
            for _ in have & set(names):
                step()
            if new := [name for name in names if name not in have]:
                missing.setdefault(input_of(module), {})[module] = new
        for owner in [owner for owner in missing if not self._feeds_back(owner)]:
            for module, names in missing.pop(owner).items():
                self._round_alone(module, names, step)
        for owners in self._batches(missing):
            self._draft(owners, missing, feedback, step)

    def finish(self, chosen: Candidates, step: Step) -> None:
        """Bring what was chosen from drafts to ``best``, if that was asked for.

        Args:
            chosen: what to finish; the bank has all of it.
            step: called once per (matrix, grid).
        """
        drafts: dict[str, dict[str, list[str]]] = {}
        for module, names in chosen.items():
            owner, cells = input_of(module), self.cells(module)
            drafted = self._rounding == "best" and self._feeds_back(owner)
            if rough := [n for n in names if drafted and cells[n].rounding != "best"]:
                drafts.setdefault(owner, {})[module] = rough
            for _ in set(names) - set(rough):
                step()
        for owners in self._batches(drafts):
            self._improve(owners, drafts, step)

    def _batches(self, wanted: Wanted) -> Iterator[list[str]]:
        """Inputs of equal width, as many at a time as memory is meant for."""
        room = CPU_BATCH if compute_device().type == "cpu" else DEVICE_BATCH
        shapes = self.checkpoint.matrices
        batch: list[str] = []
        taken = 0
        for owner in sorted(wanted, key=lambda owner: shapes[owner][1]):
            width = shapes[owner][1]
            cells = sum(math.prod(shapes[m]) * len(names) for m, names in wanted[owner].items())
            size = CELL_BYTES * cells + HESSIAN_BYTES * width**2
            if batch and (taken + size > room or shapes[batch[0]][1] != width):
                yield batch
                batch, taken = [], 0
            batch.append(owner)
            taken += size
        if batch:
            yield batch

    def _feeds_back(self, owner: str) -> bool:
        """Whether error feedback makes sense for what reads an input.

        Not for an embedding or a head: tokens are read and predicted at places so different that
        one Hessian for all rows does not help (docs/decisions/feedback.md). Nor for rows that are
        no whole number of groups, which take no grid but the floats.
        """
        columns = self.checkpoint.matrices[owner][1]
        return owner not in (EMBEDDING, HEAD) and columns % GROUP == 0

    def _draft(self, owners: Sequence[str], wanted: Wanted, feedback: bool, step: Step) -> None:
        """Round what reads some inputs for the first time."""
        keys, jobs, factor = self._jobs(owners, wanted)
        drafts = draft(jobs, factor, feedback)
        method = "gptq" if feedback else "nearest"
        cells = [
            Cell(self.moments.divergence_of_rows(module, one.costs), method, one.method)
            for (module, _), one in zip(keys, drafts, strict=True)
        ]
        self._add(
            keys, [job.grid.pack(d.fields) for job, d in zip(jobs, drafts, strict=True)], cells
        )
        for _ in keys:
            step()

    def _improve(self, owners: Sequence[str], wanted: Wanted, step: Step) -> None:
        """Finish drafts of what reads some inputs; the search's figures stay those of drafts."""
        keys, jobs, factor = self._jobs(owners, wanted)
        drafts = [
            job.grid.unpack(
                {part: t.to(job.weight.device) for part, t in self.packed(*key).items()}
            )
            for key, job in zip(keys, jobs, strict=True)
        ]
        done = improve(jobs, drafts, factor)
        cells = [
            replace(self.cells(module)[name], rounding="best", kept=one.method)
            for (module, name), one in zip(keys, done, strict=True)
        ]
        self._add(keys, [job.grid.pack(d.fields) for job, d in zip(jobs, done, strict=True)], cells)
        for _ in keys:
            step()

    def _jobs(
        self, owners: Sequence[str], wanted: Wanted
    ) -> tuple[list[tuple[str, str]], list[Job], Factor]:
        """What to round of some inputs' readers, as (module, grid) and as jobs, and the factor."""
        device = compute_device()
        hessians = torch.stack([self.moments.hessian(owner) for owner in owners]).to(device)
        factor = factorize(hessians, owners, self._say)
        keys, jobs = [], []
        for place, owner in enumerate(owners):
            for module, names in wanted[owner].items():
                weight = self.checkpoint.load(f"{module}.weight").to(device)
                keys += [(module, name) for name in names]
                jobs += [Job(weight, grids.get(name), place) for name in names]
        return keys, jobs, factor

    def _round_alone(self, module: str, names: Sequence[str], step: Step) -> None:
        """A matrix to its nearest levels."""
        weight = self.checkpoint.load(f"{module}.weight").to(compute_device())
        hessian, importance = self.moments.hessian(module), self.moments.importance(module)
        packed, cells = [], []
        for name in names:
            grid = grids.get(name)
            packed.append(grid.pack(fit(grid, weight, importance)))
            error = grid.dequantize(packed[-1]).sub_(weight).cpu()
            divergence = self.moments.divergence(module, error, hessian)
            cells.append(Cell(divergence, self._rounding, "nearest"))
            step()
        self._add([(module, name) for name in names], packed, cells)

    def _add(
        self, keys: Sequence[tuple[str, str]], packed: Sequence[Packed], cells: Sequence[Cell]
    ) -> None:
        """Write inputs' artefacts again, with more (matrix, grid) in them."""
        by_owner: dict[str, list[int]] = {}
        for i, (module, _) in enumerate(keys):
            by_owner.setdefault(input_of(module), []).append(i)
        for owner, own in by_owner.items():
            artefact = f"bank/{owner}"
            parts = self.work.load(artefact) if self.work.has(artefact) else {}
            facts = self._facts(owner)
            for i in own:
                cell = "/".join(keys[i])
                parts |= {f"{cell}/{part}": tensor.cpu() for part, tensor in packed[i].items()}
                facts[cell] = json.dumps(asdict(cells[i]))
            self.work.save(artefact, parts, facts)

    def _facts(self, owner: str) -> dict[str, str]:
        if not self.work.has(f"bank/{owner}"):
            return {}
        with self.work.open(f"bank/{owner}") as handle:
            return dict(handle.metadata())

    def cells(self, module: str) -> dict[str, Cell]:
        """Grid name → what became of the matrix there, for the grids that are there."""
        own = f"{module}/"
        return {
            key.removeprefix(own): Cell(**json.loads(fact))
            for key, fact in self._facts(input_of(module)).items()
            if key.startswith(own)
        }

    def packed(self, module: str, grid: str) -> Packed:
        """The parts of a matrix on a grid."""
        own = f"{module}/{grid}/"
        with self.work.open(f"bank/{input_of(module)}") as handle:
            names = handle.keys()
            mine = [name for name in names if name.startswith(own)]
            return {name.removeprefix(own): handle.get_tensor(name) for name in mine}
