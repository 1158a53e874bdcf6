"""MLX: a directory that mlx-lm loads on Apple Silicon.

In: a checkpoint, an allocation and packed matrices. Out: a directory ``<name>-mlx`` with
``model.safetensors``, ``config.json``, the tokenizer and ``recipe.json``. :data:`MLX` says what is
special about the format; :mod:`.layout` says where each byte lies, and :mod:`.writing` writes and
checks.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bitquilt.engines import is_mlx
from bitquilt.errors import UserError
from bitquilt.runtime.files import read_json
from bitquilt.targets.base import StoredMatrix, Target

if TYPE_CHECKING:
    from torch import Tensor

    from bitquilt.engines.remote import RemoteEngine
    from bitquilt.models.checkpoint import Checkpoint
    from bitquilt.qtypes.qtype import Allocation, PackedSource
    from bitquilt.targets.base import Tokenize
    from bitquilt.targets.layout import Layout

_PROJECTED = "multi_modal_projector.linear_2.weight"
"""The matrix that gives the embeddings of an image."""


class _Mlx(Target):
    name = "mlx"
    suffix = "-mlx"
    engine = "mlx-lm"
    presets = "mlx-lm"
    packages = ("mlx", "mlx-lm")
    engine_seconds = 3.0
    check_excerpt = 5, 16  # mlx is slow where there is no Metal
    noise_excerpt = 24, 32
    engine_adds = 0.005  # 0.0015 was measured: docs/decisions/mlx-activations.md
    engine_rounds = "computes in bfloat16"
    image_engine = "mlx-vlm"
    images_are_read = "It is in the directory: mlx-vlm reads images with it, and mlx-lm ignores it"
    engine_is_fast = sys.platform == "darwin"
    scale_dtype = "bfloat16"
    norm_dtype = "bfloat16"  # docs/decisions/mlx-activations.md
    own_repository = True
    ollama_runs = False
    alignment = 1
    fewest_bits = 2.25  # 2bit-g128
    bits_reach = 1.0, 1.7  # its types lie closer together than those of GGUF
    superseded: ClassVar[Mapping[int, frozenset[str]]] = {
        32: frozenset({"nvfp4", "mxfp8"}),
        64: frozenset({"mxfp4", *(f"{bits}bit-g32" for bits in (2, 3, 4, 5, 6, 8))}),
        128: frozenset(f"{bits}bit-g64" for bits in (2, 3, 4, 5)),
    }
    same_levels: ClassVar[Mapping[str, str]] = {  # blocks and sub-blocks of 32 on even levels
        **dict.fromkeys(("Q4_0", "Q4_1", "Q4_K"), "4bit-g32"),
        **dict.fromkeys(("Q5_0", "Q5_1", "Q5_K"), "5bit-g32"),
        "Q8_0": "8bit-g32",
        "MXFP4": "mxfp4",
        "NVFP4": "nvfp4",
        **dict.fromkeys(("Q2_0", "TQ1_0"), "2bit-g64"),
    }

    def run_command(self, repository: str, name: str) -> str:
        return f'mlx_lm.generate --model {repository} --prompt "What is 347 + 585?"'

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

    def holds(self, path: Path) -> bool:
        if not (path.is_dir() and is_mlx(path)):
            return False
        if not (path / "model.safetensors").is_file():
            raise UserError(
                f"{path} has no model.safetensors: bitquilt measures MLX models whose weights "
                "are in one file; write it again with `bitquilt quantize`"
            )
        return True

    def refuse_damaged(self, path: Path) -> None:
        from bitquilt.targets.mlx.headers import safetensors_entries

        for _ in safetensors_entries(path):
            pass  # each file is checked before its entries come

    def shapes(self, path: Path) -> Mapping[str, tuple[int, ...]]:
        from bitquilt.models import from_config
        from bitquilt.models.canonical import QUANTIZED

        config = read_json(path / "config.json")
        # shapes are those of the model that was quantized
        plain = {key: value for key, value in config.items() if key not in QUANTIZED}
        return from_config(plain, path.name).shapes

    def matrix_name(self, module: str, checkpoint: Checkpoint) -> str:
        return module

    def keeps_vision(self, checkpoint: Checkpoint) -> bool:
        from bitquilt.targets.mlx.layout import is_wrapped

        return is_wrapped(checkpoint)

    def vision_beside(self, path: Path) -> Path | None:
        from bitquilt.targets.mlx.vision import VISION_FILE

        vision = path / VISION_FILE
        return vision if vision.is_file() else None

    def vision_tensors(self, vision: Path) -> tuple[int | None, Counter[str]]:
        from bitquilt.targets.mlx.headers import entries_of_file

        width, types = None, Counter[str]()
        for name, entry in entries_of_file(vision):
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            types[entry["dtype"]] += end - begin
            if name == _PROJECTED:
                width = entry["shape"][0]
        return width, types

    def see_command(self, repository: str, name: str, vision: str) -> str:
        return (
            f"mlx_vlm.generate --model {repository} --image picture.png "
            '--prompt "What is in this picture?"'
        )

    def stored(self, path: Path) -> list[StoredMatrix]:
        from bitquilt.targets.mlx.stored import stored_in_mlx

        return stored_in_mlx(path)

    def decoded(self, path: Path, name: str) -> Tensor:
        from bitquilt.targets.mlx.writing import MlxWeights

        return MlxWeights(path)[f"{name}.weight"]

    def data_bytes(self, path: Path) -> int:
        from bitquilt.targets.mlx.writing import data_bytes

        return data_bytes(path)

    def count_weights(self, path: Path) -> int:
        from bitquilt.targets.mlx.stored import weights_in_mlx

        return weights_in_mlx(path)

    def files(self, path: Path) -> list[Path]:
        inside = (file for file in sorted(path.iterdir()) if file.name != "README.md")
        return [file for file in inside if file.is_file()]

    def recipe_path(self, path: Path) -> Path:
        return path / "recipe.json"

    def open_engine(self, path: Path) -> RemoteEngine:
        from bitquilt.engines.mlx import open_mlx

        return open_mlx(path)

    @contextmanager
    def engine_tokenizer(self, checkpoint: Checkpoint) -> Iterator[Tokenize]:
        from transformers import AutoTokenizer

        try:  # as mlx_lm.utils.load does, of the files that are copied
            loaded: Any = AutoTokenizer.from_pretrained(checkpoint.tokenizer_dir)
        except Exception as error:  # tokenizers raises no narrower class
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"mlx-lm could not load the tokenizer of {checkpoint.name}: {reason}; give "
                "--to=gguf"
            ) from error
        yield lambda text, add_special: loaded.encode(text, add_special_tokens=add_special)

    def refuse_overwrite(self, path: Path, checkpoint: Checkpoint) -> None:
        from bitquilt.targets.destination import check_directory

        check_directory(path, marker=self.recipe_path(path).name)


MLX = _Mlx()
