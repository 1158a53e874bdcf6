"""The layer bank: every matrix on every candidate grid, packed, with what each costs.

One artefact per matrix, ``bank/<module>``: the parts of each grid under ``<grid>/<part>``, and as
facts the predicted divergence of each. A grid that is missing is added; nothing is rounded twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bitquilt import grids
from bitquilt.calibration.moments import Moments
from bitquilt.checkpoint.checkpoint import Checkpoint
from bitquilt.grids.grid import Packed
from bitquilt.progress import Step
from bitquilt.workdir import WorkDir

Candidates = Mapping[str, Sequence[str]]
"""Module path → names of the grids it may be put on."""


class Bank:
    """The packed matrices of one checkpoint in a work directory."""

    def __init__(self, checkpoint: Checkpoint, work: WorkDir) -> None:
        self.checkpoint = checkpoint
        self.work = work
        self.moments = Moments(checkpoint, work)

    def build(self, candidates: Candidates, step: Step) -> None:
        """Round what is not there yet; ``step`` is called once per (matrix, grid)."""
        for module, names in candidates.items():
            have = self.predicted(module)
            missing = [name for name in names if name not in have]
            for _ in range(len(names) - len(missing)):
                step()
            if missing:
                self._add(module, missing, step)

    def _add(self, module: str, names: Sequence[str], step: Step) -> None:
        weight = self.checkpoint.load(f"{module}.weight")
        hessian = self.moments.hessian(module)
        importance = self.moments.importance(module)
        artefact = _artefact(module)
        parts = self.work.load(artefact) if self.work.has(artefact) else {}
        facts = {name: repr(score) for name, score in self.predicted(module).items()}
        for name in names:
            grid = grids.get(name)
            packed = grid.round_nearest(weight, importance)
            error = grid.dequantize(packed).sub_(weight)
            parts |= {f"{name}/{part}": tensor for part, tensor in packed.items()}
            facts[name] = repr(self.moments.divergence(module, error, hessian))
            step()
        self.work.save(artefact, parts, facts)

    def predicted(self, module: str) -> dict[str, float]:
        """Grid name → predicted divergence in nats per token, for the grids that are there."""
        if not self.work.has(_artefact(module)):
            return {}
        with self.work.open(_artefact(module)) as handle:
            return {name: float(score) for name, score in handle.metadata().items()}

    def packed(self, module: str, grid: str) -> Packed:
        """The parts of a matrix on a grid."""
        with self.work.open(_artefact(module)) as handle:
            names = handle.keys()
            own = [name for name in names if name.startswith(f"{grid}/")]
            return {name.removeprefix(f"{grid}/"): handle.get_tensor(name) for name in own}


def _artefact(module: str) -> str:
    return f"bank/{module}"
