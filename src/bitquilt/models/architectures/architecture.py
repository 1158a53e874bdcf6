"""What bitquilt knows of a family of models that engines run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from bitquilt.errors import UserError
from bitquilt.gguf.container import MetadataValue
from bitquilt.gguf.header import GgufHeader
from bitquilt.models.architectures.conditions import Condition
from bitquilt.models.architectures.rotation import interleaving
from bitquilt.models.architectures.tensors import OUTSIDE, BlockTensors
from bitquilt.models.config import ModelConfig
from bitquilt.models.names import block_path, in_block, layer_of

_SUFFIXES = (".weight", ".bias")


def _nothing(*_: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One family in canonical form; the defaults are those of a plain decoder."""

    model_type: str
    """As transformers names it."""
    gguf_architecture: str
    """``general.architecture`` of its GGUF files."""
    block: BlockTensors
    """Every tensor that one of its blocks may have, in the order of files."""
    conditions: tuple[Condition, ...]
    """What a config must say for engines to compute it exactly; else it is not opened."""
    wrappers: tuple[str, ...] = ()
    """Multimodal model types whose text half is of this family."""

    embedding_scale: Callable[[ModelConfig], float] = lambda config: 1.0
    """What embeddings are multiplied by before the first block."""
    logit_scale: Callable[[ModelConfig], float] = lambda config: 1.0
    """What logits are multiplied by."""
    alone: Mapping[str, Any] = field(default_factory=dict)
    """Config fields that make a one-block model of transformers compute its block and no more,
    where it would scale its input otherwise."""
    plain_residual: bool = True
    """Whether outputs of o_proj and down_proj are added to the residual stream as they are, neither
    normalized nor scaled."""
    norm_offset: float = 0.0
    """What a norm adds to its weight before it scales; GGUF stores the sum."""
    interleaved: bool = False
    """Whether GGUF stores the rows of q and k in interleaved order."""
    window_everywhere: bool = False
    """Whether every layer attends to ``sliding_window`` tokens where the config gives one; in other
    families ``use_sliding_window`` decides."""

    runs_windows: bool = False
    """Whether llama.cpp runs this family's sliding windows; else it attends to all tokens."""
    reads_rope_freqs: bool = False
    """Whether llama.cpp reads Llama 3's RoPE scaling for this family."""
    is_70b: Callable[[ModelConfig], bool] = lambda config: False
    """Whether llama.cpp takes a model for the 70B (``LLM_TYPE_70B``), which its presets favour."""
    gguf_conditions: tuple[Condition, ...] = ()
    """What a config must say for llama.cpp to compute it exactly; else no GGUF is written."""
    gguf_keys: Callable[[ModelConfig], dict[str, MetadataValue]] = _nothing
    """Config → the metadata that only this family has, without the architecture's name."""
    gguf_fields: Callable[[GgufHeader, ModelConfig], ModelConfig] = _nothing
    """The inverse: header and the fields read so far → the config's remaining or other fields."""

    def gguf_name(self, name: str) -> str:
        """The GGUF name of a tensor, or of a module path given without its suffix.

        Raises:
            UserError: the family has no such tensor.
        """
        stem, suffix = _parted(name)
        layer = layer_of(name)
        known = _OUTSIDE if layer is None else self._inside
        found = known.get(stem if layer is None else in_block(stem))
        if found is None:
            raise UserError(
                f"{name} has no place in a GGUF file of architecture {self.gguf_architecture}; "
                "check model_type in config.json"
            )
        return f"{found}{suffix}" if layer is None else f"blk.{layer}.{found}{suffix}"

    def hf_name(self, gguf_name: str) -> str:
        """The inverse of :meth:`gguf_name`.

        Raises:
            UserError: the family has no such tensor.
        """
        stem, suffix = _parted(gguf_name)
        block = re.match(r"blk\.(\d+)\.", stem)
        known = _swapped(self._inside) if block else _swapped(_OUTSIDE)
        found = known.get(stem[block.end() :] if block else stem)
        if found is None:
            raise UserError(
                f"the GGUF tensor {gguf_name} does not belong to a plain dense {self.model_type} "
                "model, and bitquilt reads no others; quantize another model"
            )
        return f"{block_path(int(block[1]))}.{found}{suffix}" if block else f"{found}{suffix}"

    def gguf_rows(self, name: str, config: ModelConfig) -> torch.Tensor | None:
        """GGUF's order of the rows (or bias entries) of a tensor, where it has its own.

        Returns:
            int64 [rows], for ``rows[order]``; None where the order is the canonical one.
        """
        return interleaving(name, config) if self.interleaved else None

    def gguf_offset(self, name: str) -> float:
        """What GGUF stores on top of a tensor's values."""
        return self.norm_offset if name.endswith("norm.weight") else 0.0

    @cached_property
    def _inside(self) -> dict[str, str]:
        """Module path within a block → GGUF's name."""
        return _stems(self.block)


def _stems(tensors: BlockTensors) -> dict[str, str]:
    return {_parted(name)[0]: tensor.gguf for name, tensor in tensors.items()}


def _swapped(names: dict[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in names.items()}


def _parted(name: str) -> tuple[str, str]:
    """A name without its suffix, and the suffix."""
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


_OUTSIDE = _stems(OUTSIDE)
