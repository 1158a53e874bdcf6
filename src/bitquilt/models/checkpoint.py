"""The canonical checkpoint: one read-only view of a model, whatever it was stored as.

Everything after this stage sees only this class: Hugging Face tensor names, an architecture that
every engine runs, tensors loaded one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"
PLAIN_TYPES = frozenset(("F64", "F32", "F16", "BF16"))
"""Storage types that weights lose nothing by which a quantized file could still have."""


ADAPTER_CONFIG = "adapter_config.json"
"""The file that speaks of an adapter, where one is."""
_TOLD = ("quantization", "tokenizer.json", "tekken.json", "trimming", ADAPTER_CONFIG)
"""Subjects of findings that change what files are made of."""


@dataclass(frozen=True)
class Finding:
    """Something odd about a checkpoint, and what it means."""

    subject: str
    """The config field or tensor that it is about, e.g. ``no_rope_layers``."""
    message: str
    """One sentence."""


@dataclass(frozen=True)
class Vocabulary:
    """What is left of the vocabulary of a trimmed model."""

    original: str
    """The name of the model that it was cut from."""
    kept: int
    """The tokens that are left."""
    tokens: int
    """The rows of the original's embedding."""

    def __str__(self) -> str:
        """Say it in a sentence."""
        return (
            f"Its vocabulary is trimmed to {self.kept:,} of the {self.tokens:,} tokens of "
            f"{self.original}."
        )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model in canonical form: config, shapes, and weights on demand.

    ``config`` is a Hugging Face config whose ``model_type`` is one of
    :data:`~bitquilt.models.architectures.ARCHITECTURES`. Tensors carry the names that transformers
    gives that architecture (``model.layers.0.self_attn.q_proj.weight``); q and k rows are in
    half-split RoPE order. A tied head has no tensor of its own.
    """

    name: str
    """Short name for people and file names, e.g. ``MobileLLM-R1-950M``."""
    config: dict[str, Any]
    original_config: dict[str, Any]
    """The config as found (equal to ``config`` where nothing was rewritten)."""
    shapes: dict[str, tuple[int, ...]]
    """Every tensor, in model order: embedding, blocks, final norm, untied head."""
    reader: Callable[[str], torch.Tensor] = field(repr=False)
    """Tensor name → tensor in canonical form, of whatever floats the source has; see
    :meth:`load`."""
    source_types: dict[str, int]
    """Storage type (``F32``, ``BF16``, ``F16``, or a GGUF type) → bytes of the source's tensors on
    it, most first."""
    tokenizer_dir: Path | None
    """Directory with tokenizer.json and tokenizer_config.json; None for a config alone."""
    chat_template: str | None
    generation_config: dict[str, Any]
    findings: tuple[Finding, ...]
    fingerprint: str
    """sha256 over config, tensor names, shapes, and each source file's name, size and a sample of
    its bytes."""
    named_templates: dict[str, str] = field(default_factory=dict, repr=False)
    """Chat templates beside that one, by name: a tokenizer may have one for tools."""
    known: bool = True
    """Whether its family is one of ours. Of others, config, names and shapes are as published, and
    only transformers runs them."""
    gguf_source: Path | None = None
    """The GGUF file this came from; its header is preserved when a GGUF is written."""
    gguf_general: dict[str, Any] = field(default_factory=dict, repr=False)
    """The ``general.*`` keys of that file: whose it is, and on what terms."""
    hub_id: str | None = None
    """The repository that it came from, ``owner/name`` on the hub; None if that is not known."""
    source_bytes: dict[str, int] = field(default_factory=dict, repr=False)
    """Bytes of every tensor in the source; 0 for a norm of ones that the rewrite added."""
    tensor_types: dict[str, str] = field(default_factory=dict, repr=False)
    """Tensor → its storage type in the source; empty where there are no weights."""
    sampler: Callable[[str], torch.Tensor] | None = field(default=None, repr=False)
    """Name of a matrix → a few of its rows, float32 [some rows, C]; None where there are no
    weights."""
    file_type: str | None = None
    """What llama.cpp calls a GGUF source as a whole: ``Q4_K_M``."""
    trimmed: Vocabulary | None = None
    """What is left of its vocabulary; None of a model that has all of it."""
    vision: Path | None = None
    """The directory whose weights have a vision tower besides; None where there is none."""

    def load(self, name: str, device: torch.device | None = None) -> torch.Tensor:
        """Read one tensor as float32, checked for shape and for NaN or infinity.

        It becomes float32 where it is wanted: half as many bytes go to a GPU then.

        Args:
            name: canonical.
            device: where to; the CPU's memory with None.

        Raises:
            UserError: the file is truncated, contradicts the config, or holds NaN.
        """
        stored = self.reader(name)
        return (stored if device is None else stored.to(device)).float()

    @cached_property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Module path → (rows, columns) of every weight matrix that can be put on a type.

        The embedding comes first, then the blocks in order, then an untied head. Norms and biases
        are not matrices: they stay as they are.
        """
        return {
            name.removesuffix(".weight"): (shape[0], shape[1])
            for name, shape in self.shapes.items()
            if len(shape) == 2 and name.endswith(".weight")
        }

    @cached_property
    def levels(self) -> dict[str, str]:
        """Module path → the quantized type on whose levels the matrix lies already.

        A matrix of a quantized source lies on those that it is stored as, one of a checkpoint that
        was trained for a type on those of that type, bent by what it was published in. Others have
        no entry. A few rows of every matrix are read.
        """
        from bitquilt.models.lattice import lattice_of
        from bitquilt.runtime.threads import in_threads

        stored = {module: self.tensor_types.get(f"{module}.weight") for module in self.matrices}
        found = {m: kind for m, kind in stored.items() if kind and kind not in PLAIN_TYPES}
        sampler = self.sampler
        if sampler is None:
            return found
        others = [module for module in self.matrices if module not in found]
        lattices = in_threads(lambda module: lattice_of(sampler(f"{module}.weight")), others)
        found |= {m: lattice.name for m, lattice in zip(others, lattices, strict=True) if lattice}
        return found

    @property
    def to_be_told(self) -> list[str]:
        """The findings that are told before work, since files are made of what they speak of."""
        return [found.message for found in self.findings if found.subject in _TOLD]

    @cached_property
    def weights(self) -> int:
        """The weights of all tensors, norms and biases too."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def embeddings(self) -> int:
        """The number of tokens that it has an embedding of."""
        rows = self.matrices[EMBEDDING][0] if self.known else self.config["vocab_size"]
        return int(rows)

    @property
    def head_weights(self) -> int:
        """The number of weights of the output head, which is the embedding where it is tied."""
        return math.prod(self.shapes[f"{EMBEDDING if self.tied else HEAD}.weight"])

    @property
    def weights_per_token(self) -> int:
        """The number of weights that a token is multiplied with on its way to its logits."""
        return self.weights - (0 if self.tied else self.head_weights)

    @property
    def block_weights(self) -> int:
        """The number of weights of all blocks, and of the final norm."""
        return self.weights_per_token - self.head_weights

    @property
    def source_dtype(self) -> str:
        """The storage type of most of the source's bytes."""
        return next(iter(self.source_types))

    @property
    def stored_as(self) -> str:
        """What the source is stored as, in a word: ``BF16``, or ``Q4_K_M`` if it is quantized."""
        return self.file_type or self.source_dtype

    @property
    def quantized(self) -> bool:
        """Whether the source is quantized already, so that it has lost accuracy before."""
        return not self.source_types.keys() <= PLAIN_TYPES

    @property
    def layers(self) -> int:
        """The number of transformer blocks."""
        return int(self.config["num_hidden_layers"])

    @property
    def tied(self) -> bool:
        """Whether the embedding is the output head too."""
        return f"{HEAD}.weight" not in self.shapes
