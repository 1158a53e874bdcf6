"""MLX: a directory that mlx-lm loads on Apple Silicon."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bitquilt.targets.base import Target

if TYPE_CHECKING:
    from torch import Tensor

    from bitquilt.engines.remote import RemoteEngine
    from bitquilt.models.checkpoint import Checkpoint
    from bitquilt.qtypes.qtype import Allocation, PackedSource
    from bitquilt.targets.layout import Layout


class _Mlx(Target):
    name = "mlx"
    suffix = "-mlx"
    engine = "mlx-lm"
    packages = ("mlx", "mlx-lm")
    check_excerpt = 5, 16  # mlx is slow where there is no Metal
    noise_excerpt = 24, 32
    engine_is_fast = sys.platform == "darwin"
    alignment = 1
    bits_reach = 1.0, 1.7  # its types lie closer together than those of GGUF
    superseded: ClassVar[Mapping[int, frozenset[str]]] = {
        64: frozenset({"mxfp4", *(f"{bits}bit-g32" for bits in (2, 3, 4, 5, 6, 8))}),
        128: frozenset(f"{bits}bit-g64" for bits in (2, 3, 4, 5)),
    }

    def plan(self, checkpoint: Checkpoint, allocation: Allocation) -> Layout:
        from bitquilt.targets.mlx.writing import plan_mlx

        return plan_mlx(checkpoint, allocation)

    def write_new(
        self,
        checkpoint: Checkpoint,
        allocation: Allocation,
        packed: PackedSource,
        path: Path,
        recipe_json: str,
        padding: int,
    ) -> None:
        from bitquilt.targets.mlx.writing import write_mlx

        write_mlx(checkpoint, allocation, packed, path, recipe_json, padding)

    def check(
        self, path: Path, checkpoint: Checkpoint, allocation: Allocation, packed: PackedSource
    ) -> None:
        from bitquilt.targets.mlx.writing import check_mlx

        check_mlx(path, checkpoint, allocation, packed)

    def read_weights(self, path: Path) -> Mapping[str, Tensor]:
        from bitquilt.targets.mlx.writing import MlxWeights

        return MlxWeights(path)

    def recipe_path(self, path: Path) -> Path:
        return path / "recipe.json"

    def open_engine(self, path: Path) -> RemoteEngine:
        from bitquilt.engines.mlx import open_mlx

        return open_mlx(path)

    def refuse_overwrite(self, path: Path, checkpoint: Checkpoint) -> None:
        from bitquilt.targets.destination import check_directory

        check_directory(path, marker=self.recipe_path(path).name)


MLX = _Mlx()
