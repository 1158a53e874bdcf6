"""GGUF: one file that llama.cpp, Ollama and LM Studio run.

In: a checkpoint, an allocation and packed matrices. Out: ``<name>.gguf`` with the recipe inside,
and ``<name>.recipe.json`` beside it. :data:`GGUF` says what is special about the format; the file
is planned, written and checked in :mod:`.writing`, from the keys of :mod:`bitquilt.gguf`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bitquilt.gguf import SUFFIX
from bitquilt.targets.base import StoredMatrix, Target

if TYPE_CHECKING:
    from torch import Tensor

    from bitquilt.engines.remote import RemoteEngine
    from bitquilt.models.checkpoint import Checkpoint
    from bitquilt.qtypes.qtype import Allocation, Packed, PackedSource
    from bitquilt.targets.base import Tokenize
    from bitquilt.targets.layout import Layout

_VISION_WIDTH = "clip.vision.projection_dim"
"""What llama.cpp's converter calls the width of the embeddings that a vision tower gives."""


class _Gguf(Target):
    name = "gguf"
    suffix = SUFFIX
    engine = "llama.cpp"
    presets = "llama.cpp"
    packages = ("xllamacpp",)
    engine_seconds = 0.8
    check_excerpt = 8, 128
    noise_excerpt = 24, 128
    engine_adds = 0.02  # 0.002 to 0.012 was measured: docs/decisions/evaluation.md
    engine_rounds = "rounds activations to 8 bits"
    image_engine = "llama.cpp"
    images_are_read = "llama.cpp and LM Studio read images with it beside any of the files"
    engine_is_fast = True
    scale_dtype = "float16"
    norm_dtype = "float32"
    own_repository = False
    ollama_runs = True
    alignment = 32
    gives_cells = True
    fewest_bits = 1.5625  # IQ1_S
    bits_reach = 1.0, 2.4
    superseded: ClassVar[Mapping[int, frozenset[str]]] = {
        32: frozenset({"NVFP4", "Q4_0", "Q4_1"}),
        256: frozenset(
            {
                *("Q2_0", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4", "Q2_K", "Q3_K", "Q4_K", "IQ2_XS"),
                *("IQ1_M", "TQ1_0", "TQ2_0"),
            }
        ),
    }
    same_levels: ClassVar[Mapping[str, str]] = {
        name: name for names in superseded.values() for name in names
    }

    def about_types(self, names: Collection[str]) -> list[str]:
        said = []
        if ternary := sorted({"TQ1_0", "TQ2_0"} & {*names}):
            said.append(
                f"matrices on {' and '.join(ternary)} are for CPUs: llama.cpp has kernels for them "
                "there, and in newer builds for Vulkan, but none for CUDA or Metal"
            )
        if "Q2_0" in names:  # nine times was measured: docs/decisions/candidates.md
            said.append(
                "matrices on Q2_0 are several times slower than on Q4_0 on x86 CPUs, where "
                "llama.cpp has no fast kernel for them yet, and need its build b9916 or newer"
            )
        return said

    def vision_file(self, name: str) -> str | None:
        return f"mmproj-{name}.gguf"

    def vision_beside(self, path: Path) -> Path | None:
        from bitquilt.engines.llamacpp import named_vision

        return named_vision(path)

    def vision_tensors(self, vision: Path) -> tuple[int | None, Counter[str]]:
        from bitquilt.gguf.header import read_header

        header, types = read_header(vision), Counter[str]()
        for tensor in header.tensors.values():
            types[tensor.type.name] += tensor.nbytes
        return header.metadata.get(_VISION_WIDTH), types

    def see_command(self, repository: str, name: str, vision: str) -> str:
        tower = f"https://huggingface.co/{repository}/resolve/main/{vision}"
        return (
            f"llama-mtmd-cli --hf-repo {repository} --hf-file {name} \\\n"
            f"  --mmproj-url {tower} \\\n"
            '  --image picture.png -p "What is in this picture?"'
        )

    def run_command(self, repository: str, name: str) -> str:
        return f"llama-cli --hf-repo {repository} --hf-file {name}"

    def plan(self, checkpoint: Checkpoint, allocation: Allocation) -> Layout:
        from bitquilt.targets.gguf.writing import plan_gguf

        return plan_gguf(checkpoint, allocation)

    def write_new(
        self,
        checkpoint: Checkpoint,
        allocation: Allocation,
        packed: PackedSource,
        path: Path,
        recipe_json: str,
        padding: int,
    ) -> None:
        from bitquilt.targets.gguf.writing import write_gguf

        write_gguf(checkpoint, allocation, packed, path, recipe_json, padding)

    def check(
        self, path: Path, checkpoint: Checkpoint, allocation: Allocation, packed: PackedSource
    ) -> None:
        from bitquilt.targets.gguf.writing import check_gguf

        check_gguf(path, checkpoint, allocation, packed)

    def read_weights(self, path: Path) -> Mapping[str, Tensor]:
        from bitquilt.gguf.header import read_header
        from bitquilt.models.sources.gguf import GgufWeights
        from bitquilt.targets.gguf.decoding import decode_on_device

        return GgufWeights(read_header(path), decode_on_device)

    def holds(self, path: Path) -> bool:
        return path.suffix == self.suffix and path.is_file()

    def refuse_damaged(self, path: Path) -> None:
        from bitquilt.gguf.header import read_header

        read_header(path)

    def shapes(self, path: Path) -> Mapping[str, tuple[int, ...]]:
        from bitquilt.models import open_checkpoint

        return open_checkpoint(path).shapes

    def matrix_name(self, module: str, checkpoint: Checkpoint) -> str:
        from bitquilt.models.architectures import architecture_of

        return architecture_of(checkpoint.config).gguf_name(module)

    def stored(self, path: Path) -> list[StoredMatrix]:
        from bitquilt.targets.gguf.stored import stored_in_gguf

        return stored_in_gguf(path)

    def packed(self, path: Path, stored: StoredMatrix) -> Packed:
        from bitquilt.targets.gguf.stored import packed_in_gguf

        return packed_in_gguf(path, stored)

    def decoded(self, path: Path, name: str) -> Tensor:
        from bitquilt.targets.gguf.decoding import decode_named

        return decode_named(path)(f"{name}.weight")

    def data_bytes(self, path: Path) -> int:
        from bitquilt.gguf.header import read_parts

        return sum(one.nbytes for part in read_parts(path) for one in part.tensors.values())

    def count_weights(self, path: Path) -> int:
        from bitquilt.gguf.header import read_parts

        return sum(prod(one.shape) for part in read_parts(path) for one in part.tensors.values())

    def files(self, path: Path) -> list[Path]:
        return [file for file in (path, self.recipe_path(path)) if file.is_file()]

    def recipe_path(self, path: Path) -> Path:
        return path.with_suffix(".recipe.json")

    def open_engine(self, path: Path) -> RemoteEngine:
        from bitquilt.engines.llamacpp import open_llamacpp

        return open_llamacpp(path)

    def engine_tokenizer(self, checkpoint: Checkpoint) -> AbstractContextManager[Tokenize]:
        from bitquilt.gguf.container import encode_header
        from bitquilt.targets.gguf.vocabulary import llama_cpp_tokenizer
        from bitquilt.targets.gguf.writing import model_metadata

        return llama_cpp_tokenizer(encode_header(model_metadata(checkpoint), []), checkpoint.name)

    def refuse_overwrite(self, path: Path, checkpoint: Checkpoint) -> None:
        from bitquilt.targets.destination import check_file

        check_file(path, checkpoint.gguf_source)


GGUF = _Gguf()
