"""transformers on PyTorch: the reference that the other engines are measured against."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.initialization import no_init_weights

from bitquilt.engines.backend import Logits, common_prefix
from bitquilt.engines.engine import Engine, GenerationRequest
from bitquilt.engines.generation import Generation
from bitquilt.engines.tokenizer import HubTokenizer
from bitquilt.errors import UserError
from bitquilt.models.chat_template import TOOL_USE
from bitquilt.models.checkpoint import HEAD, Checkpoint
from bitquilt.runtime.compute import asked_threads


class TorchEngine(HubTokenizer, Engine):
    """A canonical checkpoint in float32 on the CPU: an engine, and the backend it is built on."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        if checkpoint.tokenizer_dir is None:
            raise UserError(
                f"{checkpoint.name} has no tokenizer; put tokenizer.json beside config.json"
            )
        if (threads := asked_threads()) is not None:
            torch.set_num_threads(threads)
        super().__init__(checkpoint.tokenizer_dir, checkpoint.config, checkpoint.generation_config)
        self.info = replace(
            self.info,
            name=checkpoint.name,
            # they may be in files that the tokenizer does not read
            chat_template=checkpoint.chat_template,
            tool_template=checkpoint.named_templates.get(TOOL_USE),
        )
        self.model = transformers_model(checkpoint)
        # transformers 5.24 warns of the name that it had before
        named = inspect.signature(self.model.forward).parameters
        self._cache_name = "cache" if "cache" in named else "past_key_values"
        self._cache = DynamicCache()
        self._held: list[int] = []

    @property
    def pid(self) -> int:
        """The number of this process, for whoever measures what the model takes."""
        return os.getpid()

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        """See :class:`~bitquilt.engines.engine.Engine`."""
        return super().tokenize(text, add_special)

    def logits(self, tokens: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.float32]]:
        """See :class:`~bitquilt.engines.engine.Engine`."""
        for window in tokens:
            yield self.window(window.tolist())

    def stream(self, requests: Sequence[GenerationRequest]) -> Generation:
        """See :class:`~bitquilt.engines.engine.Engine`."""
        return Generation(self, requests)

    @torch.inference_mode()
    def window(self, tokens: Sequence[int]) -> Logits:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        rows: Logits = self.model(torch.tensor([tokens])).logits[0].numpy()
        return rows

    def read(self, tokens: Sequence[int]) -> Iterator[Logits]:
        """See :class:`~bitquilt.engines.backend.Backend`; all at once."""
        yield self.window(tokens)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[Logits, int]:
        """See :class:`~bitquilt.engines.backend.Backend`; the caches grow by themselves."""
        last, caches, prefilled = [], [], 0
        # One cache reads every prompt, the first at the end; the rows are copies of it.
        for prompt in reversed(prompts):
            missing = prompt[self._keep(common_prefix(self._held, prompt)) :]
            last.append(self._read(missing))
            caches.append([(layer.keys, layer.values) for layer in self._cache.layers])
            prefilled += len(missing)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        self._positions, longest = lengths, int(lengths.max())
        self._mask = (torch.arange(longest) >= longest - lengths[:, None]).long()
        self._rows = self._cache if len(prompts) == 1 else _merged(caches[::-1], longest)
        return np.concatenate(last[::-1]), prefilled

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Logits:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        self._mask = pad(self._mask, (0, 1), value=1)
        output = self.model(
            torch.tensor(tokens)[:, None],
            attention_mask=self._mask,
            position_ids=self._positions[:, None],
            **{self._cache_name: self._rows},
        )
        self._positions = self._positions + 1
        if self._rows is self._cache:
            self._held += tokens
        logits: Logits = output.logits[:, -1].numpy()
        return logits

    @torch.inference_mode()
    def retain(self, rows: Sequence[int]) -> None:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        index = torch.tensor(rows)
        self._rows.batch_select_indices(index)
        self._mask, self._positions = self._mask[index], self._positions[index]

    def _keep(self, length: int) -> int:
        """Forget all but the first tokens; returns how many are left."""
        self._cache.crop(length - len(self._held))
        del self._held[length:]
        return length

    def _read(self, tokens: Sequence[int]) -> Logits:
        """Append tokens; returns logits after the last one, float32 [1, V]."""
        output = self.model(
            torch.tensor([tokens]),
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: self._cache},
        )
        self._held += tokens
        logits: Logits = output.logits[:, -1].numpy()
        return logits

    def close(self) -> None:
        """Free the model."""
        del self.model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _merged(caches: list[list[tuple[torch.Tensor, torch.Tensor]]], longest: int) -> DynamicCache:
    """Return the keys and values of several prompts as a cache of the batch, padded on the left."""
    merged = DynamicCache()
    for number, layers in enumerate(zip(*caches, strict=True)):
        keys, values = (
            torch.cat([pad(row, (0, 0, longest - row.shape[2], 0)) for row in rows])
            for rows in zip(*layers, strict=True)
        )
        merged.update(keys, values, number)
    return merged


def transformers_model(checkpoint: Checkpoint) -> torch.nn.Module:
    """Build transformers' model of the canonical config, filled with the checkpoint's weights."""
    config = AutoConfig.for_model(**checkpoint.config)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = {name: checkpoint.load(name, torch.device("cpu")) for name in checkpoint.shapes}
    found = model.load_state_dict(weights, strict=False, assign=True)
    assert not found.unexpected_keys, f"{checkpoint.name}: {found.unexpected_keys}"
    assert set(found.missing_keys) <= {f"{HEAD}.weight"}, found.missing_keys
    if checkpoint.tied:
        model.tie_weights()
    module: torch.nn.Module = model.eval()
    return module
