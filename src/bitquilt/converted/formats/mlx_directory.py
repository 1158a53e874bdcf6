"""An MLX directory from its base: matrices on other types, everything else as mlx-lm wrote it.

Letters: E experts of a stack (1 for a plain matrix), R rows of each, C columns.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from bitquilt import qtypes
from bitquilt.allocation.preset_names import preset_names
from bitquilt.allocation.recipe import Recipe, require_fit
from bitquilt.bases.mlx_base import MlxBase
from bitquilt.config import QuantizeConfig
from bitquilt.converted.formats.base_format import BaseFormat, RoundedMatrix
from bitquilt.converted.formats.mlx_place import mlx_base_of, refuse_other_tokens_in_mlx
from bitquilt.converted.formats.mlx_recipe import recipe_pins_of, recipe_types_of
from bitquilt.engines.mlx import open_mlx
from bitquilt.errors import EngineMissingError, UserError
from bitquilt.models.sources import safetensors
from bitquilt.qtypes.floats import Float
from bitquilt.qtypes.qtype import Allocation, Packed
from bitquilt.rounding.nearest import fit
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.files import atomic_write
from bitquilt.runtime.progress import Progress
from bitquilt.streaming.source import SourceMatrix
from bitquilt.targets import MLX
from bitquilt.targets.destination import check_directory
from bitquilt.targets.layout import padded_text
from bitquilt.targets.mlx.layout import (
    HEADER_ALIGNMENT,
    WORST_ENTRY,
    Part,
    header_text,
    offsets_of,
    parts_of,
    quantization_entry,
)
from bitquilt.targets.mlx.writing import MlxWeights

WEIGHTS, CONFIG, RECIPE_NAME = "model.safetensors", "config.json", "recipe.json"
CHECKED_TOKENS = 16
"""What mlx-lm reads of a directory before it is put in its place."""
_RECIPE_ROOM, _RECIPE_ENTRY = 256, 40
_SAFE_TYPES = ("8bit-g64", "8bit-g32")
"""What a matrix has of which nothing is known: the first that its rows can be cut into. All that
mlx-lm can quantize are cut into the second."""
_SMALL_SHARE = 0.01
"""What a model's class asks for is followed where it is so small a part of all weights, as routers
are; where it is more, the budget decides."""


class MlxDirectory(BaseFormat):
    """What becomes of a directory by mlx-lm's converter."""

    target = MLX
    streams_nearest = False

    def __init__(self, path: Path, *, check: bool) -> None:
        """Read the headers of a base.

        Args:
            path: of the base.
            check: whether what is written is run in mlx-lm before it is put in its place.

        Raises:
            UserError: it is damaged.
        """
        self.path, self._base, self._check = path, MlxBase(path), check
        self.matrices = {
            name: SourceMatrix(name, math.prod(shape[:-2]), *shape[-2:])
            for name in self._base
            for shape in [self._base.shape(name)]
        }
        tensors = self._base.tensors
        self.stored = {name: tensors[f"{name}.weight"].dtype for name in self.matrices}
        kept = [name for name in tensors if name.removesuffix(".weight") not in self.matrices]
        self.kept = dict.fromkeys(kept, "mlx-lm does not quantize it")
        self.kept_bytes = sum(tensors[name].raw_bytes for name in kept)
        self.weights = self._base.count_weights()
        self.known = set(self.matrices)
        self._copied = self._base.copied()
        self._last = ("", torch.empty(0))
        """The matrix that was read last, by its name."""
        self._header_room = len(self._longest_header())
        self._header_room += -self._header_room % HEADER_ALIGNMENT
        described = len(self._config_text(dict.fromkeys(self.matrices, WORST_ENTRY), WORST_ENTRY))
        self._config_room, self._recipe_room = described, self._longest_recipe()
        copied = sum(map(len, self._copied.values()))
        header = struct.calcsize("<Q") + self._header_room
        self.fixed_bytes = copied + header + self._config_room + self._recipe_room + self.kept_bytes

    @classmethod
    def convert(
        cls, model: str | Path, config: QuantizeConfig, progress: Progress, *, whole: bool = True
    ) -> tuple[Path, Path]:
        del whole  # mlx-lm writes all of it
        return mlx_base_of(model, Path(config.output), progress)

    @classmethod
    def refuse_other_tokens(cls, path: Path, directory: Path) -> list[str]:
        return refuse_other_tokens_in_mlx(path, directory)

    @classmethod
    def open(cls, path: Path, name: str, config: QuantizeConfig) -> MlxDirectory:
        return cls(path, check=config.engine_check)

    @property
    def files(self) -> list[Path]:
        return safetensors.files(self.path)

    @property
    def numbers(self) -> Mapping[str, Tensor]:
        return self._base

    @property
    def pins(self) -> Mapping[str, str]:
        asked = {
            name: entry
            for name in self.matrices
            if isinstance(entry := self._base.entries[name], dict)
        }
        share = sum(self.matrices[name].weights for name in asked) / self.weights
        if share > _SMALL_SHARE:
            return {}
        types = {
            name: f"{entry['bits']}bit-g{entry['group_size']}" for name, entry in asked.items()
        }
        return {
            name: qtype
            for name, qtype in types.items()
            if qtypes.get(qtype).fits(self.matrices[name].columns)
        }

    def safe_type(self, name: str) -> str:
        columns = self.matrices[name].columns
        return next(one for one in _SAFE_TYPES if qtypes.get(one).fits(columns))

    def nbytes(self, name: str, qtype: str) -> int:
        matrix = self.matrices[name]
        if qtype == self.stored[name]:
            return self._base.tensors[f"{name}.weight"].raw_bytes
        return qtypes.get(qtype).nbytes(matrix.experts * matrix.rows, matrix.columns)

    def read(self, name: str, expert: int) -> Tensor:
        matrix = self.matrices[name]
        if self._last[0] != name:  # experts are asked for one after the other
            self._last = (name, self._base[name])
        stack = self._last[1].reshape(matrix.experts, matrix.rows, matrix.columns)
        return stack[expert].to(compute_device()).float()

    def preset(self, name: str) -> dict[str, str]:
        if name not in preset_names(MLX.name) or name not in qtypes.names(MLX.name):
            raise UserError(
                f"{name} is not a type of MLX that every matrix of {self.path.name} can take; give "
                f"one of {', '.join(qtypes.names(MLX.name))}, or --bits or --size"
            )
        types = {
            matrix: require_fit(name, matrix, one.columns, MLX.name, f"the preset {name}")
            for matrix, one in self.matrices.items()
        }
        return {**types, **self.pins}

    def of_recipe(self, recipe: Recipe) -> dict[str, str]:
        return recipe_types_of(recipe, self.matrices)

    def pinned(self, recipe: Recipe) -> dict[str, str]:
        return recipe_pins_of(recipe, self.matrices)

    def refuse_overwrite(self, path: Path) -> None:
        check_directory(path, marker=RECIPE_NAME)

    def write(
        self, types: Allocation, rounded: RoundedMatrix, path: Path, progress: Progress
    ) -> None:
        entries = {name: quantization_entry(qtypes.get(qtype)) for name, qtype in types.items()}
        packed = [tuple(entry.items()) for entry in entries.values() if isinstance(entry, dict)]
        default = dict(Counter(packed).most_common(1)[0][0]) if packed else WORST_ENTRY
        with atomic_write(path) as beside:
            beside.mkdir()
            for name, raw in self._copied.items():
                (beside / name).write_bytes(raw)
            config = self._config_text(entries, default)
            (beside / CONFIG).write_bytes(_padded(config, self._config_room, CONFIG))
            recipe = _padded(self._recipe_text(types), self._recipe_room, RECIPE_NAME)
            (beside / RECIPE_NAME).write_bytes(recipe)
            with (beside / WEIGHTS).open("wb") as file:
                self._write_weights(file, types, rounded, progress)
            if self._check:
                _run_in_engine(beside)

    def decoded(self, path: Path) -> Callable[[str], Tensor]:
        weights = MlxWeights(path)

        def decode(name: str) -> Tensor:
            matrix = self.matrices[name]
            whole = weights[f"{name}.weight"]
            return whole.reshape(matrix.experts, matrix.rows, matrix.columns)

        return decode

    def _write_weights(
        self, file: BinaryIO, types: Allocation, rounded: RoundedMatrix, progress: Progress
    ) -> None:
        parts = self._parts(types)
        offsets = offsets_of(parts)
        header = _padded(header_text(parts, offsets), self._header_room, "the header")
        file.write(struct.pack("<Q", len(header)) + header)
        start = file.tell()
        for name, tensor in self._tensors(types, rounded):
            file.seek(start + offsets[name])
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
            matrix = self.matrices.get(name.removesuffix(".weight"))
            progress.advance(0 if matrix is None else matrix.weights)

    def _tensors(self, types: Allocation, rounded: RoundedMatrix) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor as it is stored; parts of a stack have the experts in their rows."""
        for name in self._base.tensors:
            module = name.removesuffix(".weight")
            packed = self._packed(module, types[module], rounded) if module in types else None
            if packed is None:
                yield name, self._base.read(name)
                continue
            for part, tensor in packed.items():
                yield f"{module}.{part}", tensor

    def _packed(self, module: str, qtype: str, rounded: RoundedMatrix) -> Packed | None:
        """Return a matrix as stored; one of which nothing is known is rounded to the nearest.

        None for types that are stored as plain numbers.
        """
        packed, kind = rounded(module, qtype), qtypes.get(qtype)
        if packed is not None or isinstance(kind, Float):
            return packed
        return kind.pack(fit(kind, self._base[module].float().flatten(0, -2), None))

    def _parts(self, types: Allocation) -> list[Part]:
        """List every tensor in file order: wide items first, so that all are aligned."""
        parts: list[Part] = []
        for name, tensor in self._base.tensors.items():
            module = name.removesuffix(".weight")
            if module not in types or isinstance(qtypes.get(types[module]), Float):
                parts.append(Part(name, tensor.dtype, tensor.shape))
                continue
            *stack, rows, columns = tensor.shape
            for part in parts_of(module, qtypes.get(types[module]), rows, columns):
                parts.append(Part(part.name, part.dtype, (*stack, *part.shape)))
        return sorted(parts, key=lambda part: -part.item_size)

    def _longest_parts(self) -> list[Part]:
        found = []
        for name, tensor in self._base.tensors.items():
            quantized = name.removesuffix(".weight") in self.matrices
            stem = name.rpartition(".")[0]
            kinds = [f"{stem}.{part}" for part in ("weight", "scales", "biases")]
            for each in kinds if quantized else [name]:
                found.append(Part(each, "BF16", tensor.shape))
        return found

    def _longest_header(self) -> str:
        """Return the header of the most parts, all of them as far behind as can be."""
        parts = self._longest_parts()
        end = 2 * sum(tensor.raw_bytes for tensor in self._base.tensors.values())
        return header_text(parts, dict.fromkeys((part.name for part in parts), end))

    def _config_text(self, entries: Mapping[str, Any], default: Mapping[str, Any]) -> str:
        quantization = {**default, **self._base.kept_quantized, **entries}
        both = {"quantization": quantization, "quantization_config": quantization}
        return json.dumps({**self._base.config, **both}, indent=2) + "\n"

    def _recipe_text(self, types: Allocation) -> str:
        default = Counter(types.values()).most_common(1)[0][0]
        pins = {name: qtype for name, qtype in sorted(types.items()) if qtype != default}
        return json.dumps({"default": default, "pin": pins}, indent=1) + "\n"

    def _longest_recipe(self) -> int:
        return _RECIPE_ROOM + sum(len(json.dumps(name)) + _RECIPE_ENTRY for name in self.matrices)


def _run_in_engine(path: Path) -> None:
    """Run a few tokens in mlx-lm, if it is installed.

    Raises:
        UserError: it cannot load the directory, or computes no numbers.
    """
    try:
        with open_mlx(path) as engine:
            (logits,) = engine.logits(np.arange(CHECKED_TOKENS)[None])
    except EngineMissingError:
        return
    if not np.isfinite(logits).all():
        raise UserError(
            f"mlx-lm computes NaN or infinity with {path.name}; give --to=gguf, and report this "
            "model"
        )


def _padded(text: str, room: int, what: str) -> bytes:
    return padded_text(text, room, what).encode()
