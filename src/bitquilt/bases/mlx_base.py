"""Bases for MLX: directories that mlx-lm's own converter writes, and their matrices.

mlx-lm converts in a process of its own. Everything but the matrices goes from there to a quantized
directory as it is.

Letters: E experts of a stack, R rows, C columns.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from bitquilt.bases import mlx_child
from bitquilt.bases.base_file import LEAST_COLUMNS
from bitquilt.bases.converter import (
    AS_SAVED,
    SECRETS,
    Say,
    base_type,
    in_another_form,
    reason_of,
)
from bitquilt.bases.own_names import (
    Form,
    as_transformers_saves,
    sees_or_hears,
    with_bare_names,
    with_own_names,
)
from bitquilt.bases.plain_checkpoint import as_converters_read
from bitquilt.errors import EngineMissingError, UserError
from bitquilt.models.sources import safetensors
from bitquilt.models.sources.hugging_face import TEMPLATE_FILE, chat_template
from bitquilt.models.sources.safetensors import StoredTensor
from bitquilt.runtime.files import atomic_write, read_json, remove

KEPT_BY_MLX_LM = ("mxfp4",)
"""Quantization of checkpoints that its converter keeps; others it refuses, or misreads."""
QUANTIZABLE = "quantizable.json"
"""Which modules mlx-lm can quantize, beside a base."""
_OTHER_NAMES = re.compile(r"(Missing|Received) \d+ parameters|KeyError|in vain|Expected shape")
"""What mlx-lm says of tensors under names that it does not know."""
_OTHER_TYPE = re.compile(r"Model type \S+ not supported")
_FORMS: Mapping[Form, str] = {
    with_own_names: "a copy under the names of transformers' class",
    with_bare_names: "a copy under the names of transformers' class, without their first prefix",
    as_transformers_saves: AS_SAVED,
}
_WORD = 32
"""Bits of a number that holds codes."""
_Done = TypeVar("_Done")
_NOT_COPIED = ("model", QUANTIZABLE, "README.md")
_TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def mlx_dtype(directory: Path) -> str:
    """Return the dtype of a base: bfloat16, or half precision where the weights have that.

    Activations are of the dtype of norms, which MLX should not compute in float32
    (docs/decisions/mlx-activations.md).
    """
    return "float16" if base_type(directory) == "f16" else "bfloat16"


def convert_to_mlx(directory: Path, path: Path, say: Say = lambda _: None) -> None:
    """Write a model as an unquantized MLX directory.

    Args:
        directory: of a Hugging Face model.
        path: of the result; whole or not there.
        say: is told where mlx-lm got the model in another form.

    Raises:
        EngineMissingError: mlx-lm is not installed.
        UserError: it does not know the model; the sentence has its last line.
    """
    if importlib.util.find_spec("mlx_lm") is None:
        raise EngineMissingError(
            f"converting {directory} takes mlx-lm, which is not installed; pip install "
            "'bitquilt[mlx]', or give --to=gguf"
        )
    environment = {key: value for key, value in os.environ.items() if key not in SECRETS}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with atomic_write(path) as temporary:

        def convert(source: Path) -> None:
            program = [sys.executable, "-m", mlx_child.__name__]
            done = subprocess.run(
                [*program, str(source), str(temporary), mlx_dtype(directory)],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
            if done.returncode or not (temporary / QUANTIZABLE).is_file():
                raise UserError(
                    f"mlx-lm did not convert {directory}: {reason_of(done.stderr).rstrip('.')}; "
                    "try a newer mlx-lm, or give --to=gguf"
                )

        in_a_form_that_mlx_lm_reads(directory, path, convert, say)
        _add_template(directory, temporary)
        for code in temporary.glob("*.py"):  # a model's own code, which is not run
            remove(code)
        for pattern in _TERMS:
            for terms in directory.glob(pattern):
                (temporary / terms.name).write_bytes(terms.read_bytes())


def in_a_form_that_mlx_lm_reads(
    directory: Path, beside: Path, does: Callable[[Path], _Done], say: Say = lambda _: None
) -> _Done:
    """Do something with a model as it is stored, or under other names if mlx-lm has those.

    Args:
        directory: of a Hugging Face model.
        beside: a file or directory, on a disk with room; copies are put there.
        does: is given a directory; its error says of which tensors names or shapes are wrong.
        say: is told of another form.

    Raises:
        UserError: the weights are damaged, or a copy cannot be written.
    """
    try:
        with as_converters_read(directory, beside, KEPT_BY_MLX_LM) as source:
            return does(source)
    except (UserError, ValueError, KeyError) as error:
        first = error
    forms: tuple[Form, ...] = ()
    if _OTHER_NAMES.search(repr(first)):
        forms = with_own_names, with_bare_names, as_transformers_saves
    elif _OTHER_TYPE.search(str(first)) and sees_or_hears(directory):
        forms = (as_transformers_saves,)
    for form in forms:
        try:
            with form(directory, beside) as source:
                done = does(source)
        except (UserError, ValueError, KeyError):
            continue
        say(in_another_form("mlx-lm", directory, _FORMS[form]))
        return done
    raise first


def _add_template(directory: Path, made: Path) -> None:
    """Write the chat template where mlx-lm looks for it: it does not read chat_template.json."""
    template, _ = chat_template(directory)
    if template is not None and chat_template(made)[0] is None:
        (made / TEMPLATE_FILE).write_text(template, encoding="utf-8")


class MlxBase(Mapping[str, Tensor]):
    """The matrices of a base that could be quantized: module path → [R, C], or a stack [E, R, C].

    They are read from the files when they are asked for.
    """

    def __init__(self, path: Path) -> None:
        """Read the headers.

        Raises:
            UserError: the directory is damaged, or is no base.
        """
        if not (path / QUANTIZABLE).is_file():
            raise UserError(
                f"{path} has no {QUANTIZABLE}, so bitquilt did not convert it; remove it, or give "
                "another -o"
            )
        self.path = path
        self.config = read_json(path / "config.json")
        self.tensors: dict[str, StoredTensor] = safetensors.scan(safetensors.files(path))
        """All tensors of the model."""
        self.entries: dict[str, Any] = read_json(path / QUANTIZABLE)
        """Module path → what the model's class says of quantizing it."""
        self._modules = [
            name.removesuffix(".weight")
            for name, tensor in self.tensors.items()
            if name.endswith(".weight")
            and self.entries.get(name.removesuffix(".weight"))
            and len(tensor.shape) >= 2
            and tensor.shape[-2] > 1
            and tensor.shape[-1] % LEAST_COLUMNS == 0
        ]

    @property
    def kept_quantized(self) -> dict[str, dict[str, Any]]:
        """Modules that the converter kept quantized → their entries of a config, as MXFP4's."""
        stated = self.config.get("quantization") or {}
        fields = ("group_size", "bits", "mode")
        entry = {field: stated[field] for field in fields if field in stated}
        parts = [name.rpartition(".") for name in self.tensors]
        modules = [module for module, _, part in parts if part == "scales"]
        return {module: entry for module in modules if f"{module}.weight" in self.tensors}

    def count_weights(self) -> int:
        """Count the weights of all tensors; codes that were kept are as many as they stand for."""
        kept = self.kept_quantized
        total = 0
        for name, tensor in self.tensors.items():
            module, _, part = name.rpartition(".")
            if module not in kept or part not in ("weight", "scales", "biases"):
                total += math.prod(tensor.shape)
            elif part == "weight":
                total += math.prod(tensor.shape) * _WORD // int(kept[module]["bits"])
        return total

    def shape(self, module: str) -> tuple[int, ...]:
        """Return the shape of a matrix without reading it."""
        return tuple(self.tensors[f"{module}.weight"].shape)

    def copied(self) -> dict[str, bytes]:
        """Return the files that a quantized directory has, too: name → content."""
        return {
            file.name: file.read_bytes()
            for file in sorted(self.path.iterdir())
            if file.is_file() and not file.name.startswith(_NOT_COPIED)
            if file.name != "config.json"
        }

    def read(self, name: str) -> Tensor:
        """Read a tensor, in its own dtype.

        Raises:
            UserError: the file was changed.
        """
        return safetensors.read_raw(name, self.tensors[name])

    def __getitem__(self, module: str) -> Tensor:
        """Read a matrix."""
        return self.read(f"{module}.weight")

    def __iter__(self) -> Iterator[str]:
        """Go through the module paths, in the order of the files."""
        return iter(self._modules)

    def __len__(self) -> int:
        """Count the matrices."""
        return len(self._modules)
