"""The canonical model in torch, one block at a time: memory is one block and its hidden states.

Each block runs as a one-block transformers model, so masks, rotary embeddings and sliding windows
are transformers' own. Weights come from a callable, so the same pass runs the checkpoint, a mix
from the bank, or a file that was written.

Letters: N windows, L tokens in a window, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel
from transformers.initialization import no_init_weights

from bitquilt.models.architectures import architecture_of
from bitquilt.models.block_ahead import BlockAhead
from bitquilt.models.checkpoint import EMBEDDING, HEAD, Checkpoint
from bitquilt.models.config import ModelConfig
from bitquilt.models.names import block_path
from bitquilt.runtime.device import compute_device

TensorReader = Callable[[str], Tensor]
"""Canonical tensor name → float32 tensor."""
Advance = Callable[[int], None]
"""Is told how much work was done: tokens × weights that they were multiplied with."""

BATCH_TOKENS = 4096
"""Tokens that go through a block at once; a GPU takes more, to be busy with them."""
GPU_BATCH_TOKENS, GPU_BATCH_NUMBERS = 16384, 1 << 25
"""Of a GPU as many tokens at most, and as many numbers between two blocks, T · D."""
LOGIT_TOKENS = 256
"""Tokens whose logits are in memory at once, at most."""
LOGITS = 1 << 23
"""Logits in memory at once, in each of the few tensors that a comparison takes."""
GPU_LOGITS = 4
"""A GPU has so many times as many."""


def ignore(work: int) -> None:
    """Tell nobody of the work that was done."""


class BlockwiseModel:
    """A canonical model that loads one block at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: TensorReader | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """``dtype`` is that of the arithmetic; weights come in float32 and are rounded to it."""
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = compute_device()
        self.in_bfloat16 = False
        """Whether a GPU's blocks multiply in bfloat16; all else stays as it is."""
        self.weights = weights or partial(checkpoint.load, device=self.device)
        self._family = architecture_of(checkpoint.config)
        self._shells: dict[str, nn.Module] = {}  # layer type → one-block model
        self._ahead = BlockAhead(self._state) if self.device.type == "cuda" else None

    def _load(self, name: str) -> Tensor:
        return self.weights(name).to(self.device, self.dtype)

    def _empty(self, layer_type: str) -> Any:
        """A one-block transformers model of this architecture, without a vocabulary."""
        config = dict(self.checkpoint.config) | dict(self._family.alone)
        config |= {
            "num_hidden_layers": 1,
            "layer_types": [layer_type],
            "max_window_layers": 0 if layer_type == "sliding_attention" else 1,
            "vocab_size": 1,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        with no_init_weights():  # random numbers would be drawn only to be replaced
            model = AutoModel.from_config(AutoConfig.for_model(**config), dtype=self.dtype)
        return model.eval().to(self.device)

    def _shell(self, index: int) -> nn.Module:
        """One per layer type: a one-block model whose weights are yet to come."""
        types = self.checkpoint.config.get("layer_types")
        layer_type = types[index] if types else "full_attention"
        if layer_type not in self._shells:
            shell = self._empty(layer_type)
            shell.norm = nn.Identity()
            shell.embed_tokens = nn.Identity()
            self._shells[layer_type] = shell
        return self._shells[layer_type]

    def block(self, index: int, then: int | None = None) -> nn.Module:
        """Load block ``index`` and return the one-block model around it.

        Its linear layers are found at ``layers.0.<module>``; calling
        :meth:`run` with it maps hidden states to hidden states. Of a model on a GPU the block that
        is asked for ``then`` is loaded meanwhile; one that is not there is none.
        """
        shell = self._shell(index)
        state = self._ahead.take(index) if self._ahead else self._state(index)
        if self._ahead and then is not None and 0 <= then < self.checkpoint.layers:
            self._ahead.start(then)
        shell.load_state_dict(state, strict=True, assign=True)
        shell.requires_grad_(False)
        return shell

    def _state(self, index: int) -> dict[str, Tensor]:
        """The weights of block ``index`` by their names in a one-block model."""
        prefix = f"{block_path(index)}."
        return {
            "layers.0." + name.removeprefix(prefix): self._load(name)
            for name in self.checkpoint.shapes
            if name.startswith(prefix)
        }

    def through(self, index: int, hidden: Tensor) -> Tensor:
        """Hidden states [n, L, D] before block ``index`` → after it; differentiable.

        Gradients reach whatever the weights were computed from, which :meth:`block` cuts off.
        """
        inputs = {"inputs_embeds": hidden, "use_cache": False}
        shell, state = self._shell(index), self._state(index)
        out: Tensor = functional_call(shell, state, (), inputs).last_hidden_state
        return out

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Hidden states [n, L, D] before the block → after it."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            out: Tensor = block(inputs_embeds=hidden, use_cache=False).last_hidden_state
        return out

    def run_all(self, block: nn.Module, hidden: Tensor, advance: Advance = ignore) -> Tensor:
        """Do as :meth:`run` does, in place over all windows [N, L, D], a few at a time.

        ``advance`` is told after each few by how many tokens × weights of the block.
        """
        weights = sum(weight.numel() for weight in block.parameters())
        for rows in batches(hidden, batch_tokens(hidden.shape[2])):
            hidden[rows] = self.run(block, hidden[rows])
            advance(hidden[rows, :, 0].numel() * weights)
        return hidden

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens [N, L] → hidden states [N, L, D] before the first block."""
        hidden = F.embedding(tokens.to(self.device), self._load(f"{EMBEDDING}.weight"))
        return hidden * embedding_scale(self.checkpoint.config)

    @torch.no_grad()
    def last_hidden(self, tokens: Tensor, advance: Advance = ignore) -> Tensor:
        """Tokens [N, L] → hidden states [N, L, D] as the head sees them (final norm applied).

        ``advance`` is told of tokens × weights as they are done.
        """
        hidden = self.embed(tokens)
        for index in range(self.checkpoint.layers):
            hidden = self.run_all(self.block(index, then=index + 1), hidden, advance)
        return self.final_norm(hidden)

    @cached_property
    def _norm(self) -> nn.Module:
        """The final norm, whose weight is yet to come."""
        norm: nn.Module = self._empty("full_attention").norm
        return norm

    def final_norm(self, hidden: Tensor) -> Tensor:
        """The norm before the head, and the scale of logits; differentiable as :meth:`through`."""
        weight = self._load("model.norm.weight")
        out: Tensor = functional_call(self._norm, {"weight": weight}, hidden)
        scale = self._family.logit_scale(self.checkpoint.config)
        return out if scale == 1.0 else out * scale

    def head(self) -> Tensor:
        """The output matrix [V, D]: the embedding where it is tied."""
        return self._load(f"{EMBEDDING if self.checkpoint.tied else HEAD}.weight")


def logit_tokens(vocabulary: int) -> int:
    """Return of how many tokens the logits are in memory at once: fewer where there are more."""
    times = 1 if compute_device().type == "cpu" else GPU_LOGITS
    fitting = max(1, times * LOGITS // vocabulary)
    return min(times * LOGIT_TOKENS, 1 << (fitting.bit_length() - 1))


def batch_tokens(width: int) -> int:
    """Return how many tokens go through a block of a model of this width at once."""
    if compute_device().type == "cpu":
        return BATCH_TOKENS
    return min(GPU_BATCH_TOKENS, max(BATCH_TOKENS, GPU_BATCH_NUMBERS // width))


def batches(hidden: Tensor, at_once: int = BATCH_TOKENS) -> Iterator[slice]:
    """Slices of windows [N, L, …] that hold about so many tokens each."""
    step = max(1, at_once // hidden.shape[1])
    for start in range(0, hidden.shape[0], step):
        yield slice(start, start + step)


def embedding_scale(config: ModelConfig) -> float:
    """What embeddings are multiplied by: √D in Gemma, 1 in most families."""
    return architecture_of(config).embedding_scale(config)
