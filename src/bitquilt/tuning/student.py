"""A mix whose scales and norms can be learned, its codes as they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bitquilt import grids
from bitquilt.checkpoint import names
from bitquilt.checkpoint.checkpoint import Checkpoint
from bitquilt.grids.grid import Fields, Grid, PackedSource
from bitquilt.tuning.learned import Learned, Norm, Scales

SCALE_DTYPES = {"gguf": torch.float16, "mlx": torch.bfloat16}
"""In which the files of a target store the scales of a grid that only they hold."""


def scales_of(fields: Fields) -> Fields:
    """The fields that are stored in floating point; the numbers of BF16 and F32 are codes."""
    return {n: f for n, f in fields.items() if f.is_floating_point() and n != "codes"}


class Student:
    """The model that a file would hold, differentiable in what is learned."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        mix: Mapping[str, str],
        packed: PackedSource,
        device: torch.device,
    ) -> None:
        """Start from a mix as it was rounded.

        Args:
            checkpoint: gives norms and biases.
            mix: module path → grid name, for every matrix.
            packed: the rounded matrices.
            device: where to compute.
        """
        self._grids = {module: grids.get(name) for module, name in mix.items()}
        self._fixed: dict[str, Fields] = {}
        self._learned: dict[str, Learned] = {}  # by module path, or by name of a norm
        for module, grid in self._grids.items():
            fields = {n: f.to(device) for n, f in grid.unpack(packed(module, grid.name)).items()}
            self._add(module, grid, fields)
        self._biases: dict[str, Tensor] = {}
        dtype = self._norm_dtype()
        offset = names.norm_offset(checkpoint.config["model_type"])
        for name, shape in checkpoint.shapes.items():
            if len(shape) == 1 and name.endswith("norm.weight"):
                weight = checkpoint.load(name).to(device)
                self._learned[name] = Norm(weight, offset, dtype)
            elif len(shape) == 1:
                self._biases[name] = checkpoint.load(name).to(device)

    def _add(self, module: str, grid: Grid, fields: Fields) -> None:
        """A matrix: what of it stays, and its scales if it has any in floating point."""
        scales = scales_of(fields)
        fixed = {name: fields[name] for name in fields.keys() - scales.keys()}
        self._fixed[module] = fixed
        if scales:
            (target,) = grid.targets
            dtype = SCALE_DTYPES[target]
            self._learned[module] = Scales(scales, lambda own: grid.decode(fixed | own), dtype)

    def _norm_dtype(self) -> torch.dtype:
        """MLX files keep norms in bfloat16 (docs/decisions/mlx-activations.md), GGUF in float32."""
        for_mlx = any(grid.targets == {"mlx"} for grid in self._grids.values())
        return torch.bfloat16 if for_mlx else torch.float32

    def weight(self, name: str) -> Tensor:
        """A tensor by canonical name, float32; gradients reach what is learned of it."""
        if name in self._biases:
            return self._biases[name]
        if name in self._learned:
            return self._learned[name].values()["weight"]
        module = name.removesuffix(".weight")
        scales = self._learned[module].values() if module in self._learned else {}
        return self._grids[module].decode(self._fixed[module] | scales)

    def changes(self) -> list[Tensor]:
        """What the optimizer moves."""
        return [change for one in self._learned.values() for change in one.changes.values()]

    def numbers(self) -> dict[str, Tensor]:
        """All that is learned as the file would hold it now, in its dtypes, on the CPU.

        Scales are under ``<module>/<field>``, norms under ``<name>/weight``.
        """
        return {
            f"{owner}/{field}": numbers.detach().to("cpu", one.dtype)
            for owner, one in self._learned.items()
            for field, numbers in one.values().items()
        }
