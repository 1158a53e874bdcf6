"""transformers on PyTorch: the reference that the other engines are measured against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from bitquilt.checkpoint.checkpoint import HEAD, Checkpoint
from bitquilt.engines.backend import generate
from bitquilt.engines.engine import Sampling
from bitquilt.engines.tokenizer import HubTokenizer
from bitquilt.errors import UserError


class TorchEngine(HubTokenizer):
    """A canonical checkpoint in float32 on the CPU: an engine, and the backend it is built on."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        if checkpoint.tokenizer_dir is None:
            raise UserError(
                f"{checkpoint.name} has no tokenizer; put tokenizer.json beside config.json"
            )
        super().__init__(checkpoint.tokenizer_dir, checkpoint.config, checkpoint.generation_config)
        self.model = transformers_model(checkpoint)
        self._cache: object | None = None

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        """See :class:`~bitquilt.engines.engine.Engine`."""
        return super().tokenize(text, add_special)

    def logits(self, tokens: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.float32]]:
        """See :class:`~bitquilt.engines.engine.Engine`."""
        for window in tokens:
            yield self.window(window.tolist())

    def generate(self, tokens: Sequence[int], sampling: Sampling, max_tokens: int) -> Iterator[str]:
        """See :class:`~bitquilt.engines.engine.Engine`."""
        return generate(self, tokens, sampling, max_tokens)

    @torch.inference_mode()
    def window(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        rows: npt.NDArray[np.float32] = self.model(torch.tensor([tokens])).logits[0].numpy()
        return rows

    def begin(self, capacity: int) -> None:
        """See :class:`~bitquilt.engines.backend.Backend`; the cache grows by itself."""
        self._cache = None

    @torch.inference_mode()
    def feed(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        output = self.model(
            torch.tensor([tokens]), past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._cache = output.past_key_values
        row: npt.NDArray[np.float32] = output.logits[0, -1].numpy()
        return row

    def close(self) -> None:
        """Free the model."""
        del self.model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def transformers_model(checkpoint: Checkpoint) -> torch.nn.Module:
    """Transformers' model of the canonical config, filled with the checkpoint's weights."""
    config = AutoConfig.for_model(**checkpoint.config)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = {name: checkpoint.load(name) for name in checkpoint.shapes}
    found = model.load_state_dict(weights, strict=False, assign=True)
    assert not found.unexpected_keys, f"{checkpoint.name}: {found.unexpected_keys}"
    assert set(found.missing_keys) <= {f"{HEAD}.weight"}, found.missing_keys
    if checkpoint.tied:
        model.tie_weights()
    module: torch.nn.Module = model.eval()
    return module
