"""The layer bank: every matrix on every candidate grid, packed, with what each costs.

One artefact per matrix, ``bank/<module>``: the parts of each grid under ``<grid>/<part>``, and as
facts how it was rounded and what that is predicted to cost. A grid that is missing is added;
nothing is rounded twice. Matrices that read the same input are rounded together, from one
factorization of its Hessian.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from bitquilt import grids
from bitquilt.calibration.capture import input_of
from bitquilt.calibration.moments import Moments
from bitquilt.checkpoint.checkpoint import EMBEDDING, HEAD, Checkpoint
from bitquilt.device import compute_device
from bitquilt.grids.grid import Fields, Packed
from bitquilt.progress import Step
from bitquilt.rounding.best import Job, round_all
from bitquilt.rounding.factor import factorize
from bitquilt.rounding.nearest import fit
from bitquilt.workdir import WorkDir

Candidates = Mapping[str, Sequence[str]]
"""Module path → names of the grids it may be put on."""


@dataclass(frozen=True)
class Cell:
    """One matrix on one grid."""

    divergence: float
    """Predicted, in nats per token."""
    method: str
    """How it was rounded: one of :data:`bitquilt.rounding.METHODS`."""


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
        """Round what is not there yet; ``step`` is called once per (matrix, grid)."""
        missing: dict[str, dict[str, list[str]]] = {}
        for module, names in candidates.items():
            have = self.cells(module)
            for _ in have.keys() & set(names):
                step()
            if new := [name for name in names if name not in have]:
                missing.setdefault(input_of(module), {})[module] = new
        for owner, readers in missing.items():
            if owner in (EMBEDDING, HEAD):
                self._round_table(owner, readers[owner], step)
            else:
                self._round_readers(owner, readers, step)

    def _round_readers(self, owner: str, readers: Mapping[str, list[str]], step: Step) -> None:
        """Matrices of a block that read one input."""
        device = compute_device()
        factor = factorize(self.moments.hessian(owner), owner, self._say).to(device)
        weights = {m: self.checkpoint.load(f"{m}.weight").to(device) for m in readers}
        cells = [(module, name) for module, names in readers.items() for name in names]
        jobs = [Job(weights[module], grids.get(name)) for module, name in cells]
        done = dict(zip(cells, round_all(jobs, factor, self._rounding), strict=True))
        for module, names in readers.items():
            new = {name: done[module, name] for name in names}
            facts = {
                name: Cell(self.moments.divergence_of_rows(module, one.costs), one.method)
                for name, one in new.items()
            }
            self._add(module, {name: one.fields for name, one in new.items()}, facts)
            for _ in names:
                step()

    def _round_table(self, module: str, names: Sequence[str], step: Step) -> None:
        """The embedding or an untied head, whose rows are tokens.

        Tokens are read and predicted at places so different that one Hessian for all of them does
        not help: feedback leaves the divergence as it was (docs/decisions/feedback.md).
        """
        weight = self.checkpoint.load(f"{module}.weight").to(compute_device())
        hessian, importance = self.moments.hessian(module), self.moments.importance(module)
        for name in names:
            grid = grids.get(name)
            fields = fit(grid, weight, importance)
            error = grid.decode(fields).sub_(weight).cpu()
            cell = Cell(self.moments.divergence(module, error, hessian), "nearest")
            self._add(module, {name: fields}, {name: cell})
            step()

    def _add(self, module: str, new: Mapping[str, Fields], cells: dict[str, Cell]) -> None:
        """Write a matrix's artefact again, with more grids."""
        artefact = _artefact(module)
        parts = self.work.load(artefact) if self.work.has(artefact) else {}
        for name, fields in new.items():
            packed = grids.get(name).pack(fields)
            parts |= {f"{name}/{part}": tensor.cpu() for part, tensor in packed.items()}
        facts = self.cells(module) | cells
        self.work.save(artefact, parts, {n: json.dumps(asdict(cell)) for n, cell in facts.items()})

    def cells(self, module: str) -> dict[str, Cell]:
        """Grid name → what became of the matrix there, for the grids that are there."""
        if not self.work.has(_artefact(module)):
            return {}
        with self.work.open(_artefact(module)) as handle:
            return {name: Cell(**json.loads(fact)) for name, fact in handle.metadata().items()}

    def packed(self, module: str, grid: str) -> Packed:
        """The parts of a matrix on a grid."""
        with self.work.open(_artefact(module)) as handle:
            names = handle.keys()
            own = [name for name in names if name.startswith(f"{grid}/")]
            return {name.removeprefix(f"{grid}/"): handle.get_tensor(name) for name in own}


def _artefact(module: str) -> str:
    return f"bank/{module}"
