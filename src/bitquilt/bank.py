"""The layer bank: every matrix on every candidate grid, packed, with what each costs.

One artefact per matrix, ``bank/<module>``: the parts of each grid under ``<grid>/<part>``, and as
facts the predicted divergence of each. A grid that is missing is added; nothing is rounded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from bitquilt import grids
from bitquilt.calibration.capture import input_of
from bitquilt.checkpoint.checkpoint import EMBEDDING, HEAD, Checkpoint
from bitquilt.grids.grid import Packed
from bitquilt.progress import Step
from bitquilt.rounding.error import embedding_divergence, matrix_divergence
from bitquilt.workdir import WorkDir

Candidates = Mapping[str, Sequence[str]]
"""Module path → names of the grids it may be put on."""


class Bank:
    """The packed matrices of one checkpoint in a work directory."""

    def __init__(self, checkpoint: Checkpoint, work: WorkDir) -> None:
        self.checkpoint = checkpoint
        self.work = work

    def build(self, candidates: Candidates, step: Step) -> None:
        """Round what is not there yet; ``step`` is called once per (matrix, grid)."""
        gradients = self.work.load("gradients")
        for module, names in candidates.items():
            have = self.predicted(module)
            missing = [name for name in names if name not in have]
            for _ in range(len(names) - len(missing)):
                step()
            if missing:
                self._add(module, missing, gradients, step)

    def _add(
        self, module: str, names: Sequence[str], gradients: dict[str, Tensor], step: Step
    ) -> None:
        weight = self.checkpoint.load(f"{module}.weight")
        hessian = self.hessian(module)
        importance = hessian.diagonal().contiguous()
        parts = self.work.load(_artefact(module)) if self.work.has(_artefact(module)) else {}
        facts = {name: repr(score) for name, score in self.predicted(module).items()}
        for name in names:
            grid = grids.get(name)
            packed = grid.round_nearest(weight, importance)
            error = grid.dequantize(packed) - weight
            score = _divergence(self.checkpoint, module, error, hessian, gradients)
            parts |= {f"{name}/{part}": tensor for part, tensor in packed.items()}
            facts[name] = repr(score)
            step()
        self.work.save(_artefact(module), parts, facts)

    def hessian(self, module: str) -> Tensor:
        """Mean of x xᵀ [C, C] over the calibration tokens at a matrix's input."""
        if module in (EMBEDDING, HEAD):
            artefact, key = "hessians/head", HEAD
        else:
            artefact, key = f"hessians/{module.split('.')[2]}", input_of(module)
        with self.work.open(artefact) as handle:
            hessian: Tensor = handle.get_tensor(key)
            return hessian

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

    def weights(self, assignment: Mapping[str, str]) -> Callable[[str], Tensor]:
        """Tensor name → float32 tensor of the mix; what is not assigned comes from the source."""

        def load(name: str) -> Tensor:
            module = name.removesuffix(".weight")
            if name.endswith(".weight") and module in assignment:
                grid = grids.get(assignment[module])
                return grid.dequantize(self.packed(module, grid.name))
            return self.checkpoint.load(name)

        return load


def _artefact(module: str) -> str:
    return f"bank/{module}"


def _divergence(
    checkpoint: Checkpoint,
    module: str,
    error: Tensor,
    hessian: Tensor,
    gradients: dict[str, Tensor],
) -> float:
    """Predicted KL in nats per token of a rounding error [R, C]."""
    total = 0.0
    if module == EMBEDDING:
        total += embedding_divergence(error, gradients["tokens"], gradients["columns"])
    if module == HEAD or (module == EMBEDDING and checkpoint.tied):
        total += matrix_divergence(error, hessian, gradients["head"])
    elif module != EMBEDDING:
        total += matrix_divergence(error, hessian, gradients[module])
    return total
