"""The layer bank: every matrix on every candidate grid, packed, with what each costs.

Matrices that read one input are rounded together, from one factorization of its Hessian, and are
one artefact, ``bank/<input>``: parts under ``<module>/<grid>/<part>``, and as facts how each was
rounded and what that is predicted to cost. So a run that was stopped rounds together what it would
have without the stop, and ends with the same bytes. What is missing is added; nothing is rounded
twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from bitquilt import grids
from bitquilt.calibration.capture import input_of
from bitquilt.calibration.moments import Moments
from bitquilt.checkpoint.checkpoint import EMBEDDING, HEAD, Checkpoint
from bitquilt.device import compute_device
from bitquilt.grids.grid import Packed
from bitquilt.progress import Step
from bitquilt.rounding import METHODS
from bitquilt.rounding.best import Job, round_all
from bitquilt.rounding.factor import GROUP, factorize
from bitquilt.rounding.nearest import fit
from bitquilt.workdir import WorkDir

Candidates = Mapping[str, Sequence[str]]
"""Module path → names of the grids it may be put on."""


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
        draft = "gptq" if self._rounding == "best" else self._rounding
        self._round(candidates, draft, set(METHODS), step)

    def finish(self, mix: Mapping[str, str], step: Step) -> None:
        """Round the matrices of a mix as they were asked for; ``step`` is called for each."""
        chosen = {module: [grid] for module, grid in mix.items()}
        self._round(chosen, self._rounding, {self._rounding}, step)

    def _round(self, candidates: Candidates, method: str, enough: set[str], step: Step) -> None:
        """Round the cells that were not yet rounded by one of the methods that are enough."""
        missing: dict[str, dict[str, list[str]]] = {}
        for module, names in candidates.items():
            cells = self.cells(module)
            have = {name for name, cell in cells.items() if cell.rounding in enough}
            for _ in have & set(names):
                step()
            if new := [name for name in names if name not in have]:
                missing.setdefault(input_of(module), {})[module] = new
        for owner, readers in missing.items():
            if self._feeds_back(owner):
                self._round_readers(owner, readers, method, step)
            else:
                for module, names in readers.items():
                    self._round_alone(owner, module, names, step)

    def _feeds_back(self, owner: str) -> bool:
        """Whether error feedback makes sense for what reads an input.

        Not for an embedding or a head: tokens are read and predicted at places so different that
        one Hessian for all rows does not help (docs/decisions/feedback.md). Nor for rows that are
        no whole number of groups, which take no grid but the floats.
        """
        columns = self.checkpoint.matrices[owner][1]
        return owner not in (EMBEDDING, HEAD) and columns % GROUP == 0

    def _round_readers(
        self, owner: str, readers: Mapping[str, list[str]], method: str, step: Step
    ) -> None:
        """Matrices of a block that read one input, together."""
        device = compute_device()
        factor = factorize(self.moments.hessian(owner).to(device), owner, self._say)
        weights = {m: self.checkpoint.load(f"{m}.weight").to(device) for m in readers}
        keys = [(module, name) for module, names in readers.items() for name in names]
        jobs = [Job(weights[module], grids.get(name)) for module, name in keys]
        done = round_all(jobs, factor, method)
        packed = [job.grid.pack(one.fields) for job, one in zip(jobs, done, strict=True)]
        cells = [
            Cell(self.moments.divergence_of_rows(module, one.costs), method, one.method)
            for (module, _), one in zip(keys, done, strict=True)
        ]
        self._add(owner, keys, packed, cells)
        for _ in keys:
            step()

    def _round_alone(self, owner: str, module: str, names: Sequence[str], step: Step) -> None:
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
        self._add(owner, [(module, name) for name in names], packed, cells)

    def _add(
        self,
        owner: str,
        keys: Sequence[tuple[str, str]],
        packed: Sequence[Packed],
        cells: Sequence[Cell],
    ) -> None:
        """Write an input's artefact again, with more (matrix, grid) in it."""
        artefact = f"bank/{owner}"
        parts = self.work.load(artefact) if self.work.has(artefact) else {}
        facts = self._facts(owner)
        for (module, name), own, cell in zip(keys, packed, cells, strict=True):
            parts |= {f"{module}/{name}/{part}": tensor.cpu() for part, tensor in own.items()}
            if name in (known := self.cells(module)):
                # the search goes by figures that all cells have from the same rounding
                cell = replace(cell, divergence=known[name].divergence)
            facts[f"{module}/{name}"] = json.dumps(asdict(cell))
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
