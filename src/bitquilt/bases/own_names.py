"""A checkpoint in other forms than it is stored in: a converter may read only one of them.

Files have other names than transformers' class has while it computes, often: each expert of a stack
by itself, or the whole model under one prefix. And the language model of a model that also sees or
hears may be known where the whole is not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from bitquilt.bases.deferred_stacks import float_numbers
from bitquilt.bases.importance import load_transformers_model
from bitquilt.bases.plain_checkpoint import (
    SHARD_BYTES,
    copied_otherwise,
    without_quantization,
    write_tensors,
)
from bitquilt.errors import UserError
from bitquilt.runtime.files import read_json

Form = Callable[[Path, Path], AbstractContextManager[Path]]
"""What gives a model in another form: its directory, and where a copy is put → the copy."""
_HEAD = "lm_head."


class OwnTensors(Mapping[str, Tensor]):
    """The tensors of a model that transformers has loaded, tied ones once."""

    def __init__(self, model: nn.Module, prefix: str = "") -> None:
        """Take a model.

        Args:
            model: of transformers.
            prefix: is left out of names that begin with it.
        """
        saved = model.state_dict().keys()
        found = {
            **dict(model.named_parameters()),
            **{name: one for name, one in model.named_buffers() if name in saved},
        }
        self._tensors = {name.removeprefix(prefix): one for name, one in found.items()}

    def size(self, name: str) -> int:
        """Tell how many bytes a tensor has."""
        return self._tensors[name].nbytes

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor; a stack that is not there yet is put together."""
        one = self._tensors[name]
        return float_numbers(one).to(one.dtype)

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self._tensors)


def with_own_names(directory: Path, beside: Path) -> AbstractContextManager[Path]:
    """Give a copy of a model for a while, under the names of transformers' class.

    Args:
        directory: of a Hugging Face model.
        beside: a file or directory, on a disk with room; the copy is put there.

    Raises:
        UserError: transformers cannot load it, or the copy cannot be written.
    """
    return copied_otherwise(directory, beside, lambda copy: _write(directory, copy, bare=False))


def with_bare_names(directory: Path, beside: Path) -> AbstractContextManager[Path]:
    """Give the same without the prefix that the inner model has, as GPT-2 is published."""
    return copied_otherwise(directory, beside, lambda copy: _write(directory, copy, bare=True))


def _write(directory: Path, copy: Path, *, bare: bool) -> None:
    model = load_transformers_model(directory)
    tensors = OwnTensors(model, f"{model.base_model_prefix}." if bare else "")
    write_tensors(tensors, tensors.size, read_json(directory / "config.json"), copy)


def as_transformers_saves(directory: Path, beside: Path) -> AbstractContextManager[Path]:
    """Give a copy of a language model for a while, as transformers saves it.

    Of a model that also sees or hears it is the language model alone. All its weights are in
    memory once more where files have stacks in parts.

    Args:
        directory: of a Hugging Face model.
        beside: a file or directory, on a disk with room; the copy is put there.

    Raises:
        UserError: transformers cannot load it or has no class for its language model, or the copy
            cannot be written.
    """
    return copied_otherwise(directory, beside, lambda copy: _save(directory, copy))


def _save(directory: Path, copy: Path) -> None:
    whole: Any = load_transformers_model(directory)
    config = whole.config.get_text_config()
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UserError(
            f"transformers has no class for the language model of {directory} alone; give a file "
            "that was converted elsewhere with --base=FILE"
        )
    with torch.device("meta"):
        alone = AutoModelForCausalLM.from_config(config)
    if not isinstance(whole, type(alone)) and whole.get_output_embeddings() is None:
        raise UserError(
            f"transformers does not say which part of {directory} is the head of its language "
            "model; give a file that was converted elsewhere with --base=FILE"
        )
    alone.load_state_dict(_language_model(whole, alone), strict=False, assign=True)
    alone.tie_weights()
    if lacking := [name for name, one in alone.named_parameters() if one.is_meta]:
        raise UserError(
            f"the language model of {directory} lacks {lacking[0]}; give a file that was converted "
            "elsewhere with --base=FILE"
        )
    alone.save_pretrained(copy, max_shard_size=SHARD_BYTES)
    published = read_json(directory / "config.json")
    published = without_quantization(published.get("text_config", published))
    saved = published | read_json(copy / "config.json")  # which lacks what transformers ignores
    (copy / "config.json").write_text(json.dumps(saved), "utf-8")


def _language_model(whole: Any, alone: Any) -> dict[str, Tensor]:
    """The tensors of a model, by the names that the class of its language model has for them."""
    if isinstance(whole, type(alone)):
        return dict(OwnTensors(whole))
    found: dict[str, Tensor] = {}
    for own, other, prefix in (
        (whole.get_decoder(), alone.base_model, f"{alone.base_model_prefix}."),
        (whole.get_output_embeddings(), alone.get_output_embeddings(), _HEAD),
    ):
        names = {name for name, _ in other.named_parameters()}
        names |= {name for name, _ in other.named_buffers()}
        found |= {prefix + name: one for name, one in OwnTensors(own).items() if name in names}
    return found


def sees_or_hears(directory: Path) -> bool:
    """Tell whether a model wraps a language model."""
    return isinstance(read_json(directory / "config.json").get("text_config"), dict)
