"""mlx-lm as a backend, through its public calls: load_model, the model itself, its cache."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import (
    RotatingKVCache,
    can_trim_prompt_cache,
    make_prompt_cache,
    trim_prompt_cache,
)
from mlx_lm.utils import load_model

from bitquilt.engines.backend import Logits, common_prefix
from bitquilt.engines.tokenizer import HubTokenizer
from bitquilt.errors import UserError
from bitquilt.models.config_fields import refuse_odd_fields
from bitquilt.models.generation import read_generation
from bitquilt.runtime.files import read_json

CHUNK = 512
"""A prompt is read in pieces of so many tokens."""


class MlxBackend(HubTokenizer):
    """One model, a cache that reads prompts, and a cache of the rows that are continued."""

    def __init__(self, path: str) -> None:
        """Load an MLX directory.

        Raises:
            UserError: mlx-lm refuses it.
        """
        directory = Path(path)
        config = read_json(directory / "config.json")
        refuse_odd_fields(config)
        if isinstance(text := config.get("text_config"), dict):  # of a model that sees, too
            config = {**text, **config}
        if "n_positions" in config:  # as GPT-2's and StarCoder's configs name it
            config = {"max_position_embeddings": config["n_positions"], **config}
        for field in ("vocab_size", "max_position_embeddings"):
            if config.get(field) is None:
                raise UserError(
                    f"{directory / 'config.json'} has no {field}; write the model again with "
                    "`bitquilt quantize`"
                )
        super().__init__(directory, config, read_generation(directory))
        self.info = replace(self.info, name=path)
        try:
            self._model, _ = load_model(directory)
        except Exception as error:  # whatever mlx-lm's class of a type raises
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"mlx-lm cannot load {directory}: {reason}; check it with bitquilt inspect"
            ) from error
        if mx.default_device() == mx.Device(mx.cpu):
            # the same weights; mlx's bf16 arithmetic on a CPU takes ten times as long
            self._model.set_dtype(mx.float32)
        self._cache: list[Any] = []
        self._held: list[int] = []
        self._rows: list[Any] = []

    def window(self, tokens: Sequence[int]) -> Logits:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        return np.concatenate(list(self.read(tokens)))

    def read(self, tokens: Sequence[int]) -> Iterator[Logits]:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        self._keep(0)
        yield from map(_floats, self._read(tokens))

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[Logits, int]:
        """See :class:`~bitquilt.engines.backend.Backend`; the caches grow by themselves."""
        last, caches, prefilled = [], [], 0
        # One cache reads every prompt, the first at the end; the rows are copies of it.
        for prompt in reversed(prompts):
            missing = prompt[self._keep(common_prefix(self._held, prompt)) :]
            last.append(_floats(self._read(missing)[-1][-1:]))
            caches.append(copy.deepcopy(self._cache) if len(prompts) > 1 else self._cache)
            prefilled += len(missing)
        self._rows = caches[0] if len(prompts) == 1 else _merged(caches[::-1])
        return np.concatenate(last[::-1]), prefilled

    def step(self, tokens: Sequence[int]) -> Logits:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        logits = self._model(mx.array(list(tokens))[:, None], cache=self._rows)[:, -1]
        if self._rows is self._cache:
            self._held += tokens
        return _floats(logits)

    def retain(self, rows: Sequence[int]) -> None:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        for layer in self._rows:
            layer.filter(mx.array(list(rows)))

    def verify(self, tokens: Sequence[Sequence[int]]) -> list[Logits]:
        """See :class:`~bitquilt.engines.drafting.Verifier`; there is one row."""
        (read,) = tokens
        return [_floats(mx.concatenate(self._read(read)))]

    def retract(self, counts: Sequence[int]) -> None:
        """See :class:`~bitquilt.engines.drafting.Verifier`."""
        (count,) = counts
        self._keep(len(self._held) - count)

    @property
    def at_once(self) -> int:
        """See :class:`~bitquilt.engines.drafting.Verifier`.

        A cache of several rows would take back the same number of tokens from each. A sliding
        window gives nothing back from the moment that it is full.
        """
        if self._rows is not self._cache:
            return 0
        windows = (layer for layer in self._cache if isinstance(layer, RotatingKVCache))
        left: list[int] = [layer.max_size - 1 - layer.offset for layer in windows]
        return min([CHUNK, *left])

    @property
    def retracts(self) -> bool:
        """See :class:`~bitquilt.engines.drafting.Verifier`."""
        return bool(can_trim_prompt_cache(make_prompt_cache(self._model)))

    def ordinary_text(self, token: int) -> str | None:
        """See :class:`~bitquilt.engines.drafting.Verifier`."""
        return self._ordinary.get(token)

    @cached_property
    def _ordinary(self) -> dict[int, str]:
        """Token → its text, without control tokens and others that were added."""
        added = self._tokenizer.added_tokens_decoder
        vocabulary = self._tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
        return {token: text for text, token in vocabulary.items() if token not in added}

    def _keep(self, length: int) -> int:
        """Forget all but the first tokens; returns how many the cache could keep."""
        surplus = len(self._held) - length
        if not self._cache or trim_prompt_cache(self._cache, surplus) != surplus:
            self._cache, length = make_prompt_cache(self._model), 0
        del self._held[length:]
        return length

    def _read(self, tokens: Sequence[int]) -> list[mx.array]:
        """Append tokens; returns lazy logits of each chunk, [length, V]."""
        chunks = [tokens[start : start + CHUNK] for start in range(0, len(tokens), CHUNK)]
        logits = [self._model(mx.array([list(chunk)]), cache=self._cache)[0] for chunk in chunks]
        self._held += tokens
        return logits


def _merged(caches: list[list[Any]]) -> list[Any]:
    """Return the caches of several prompts as one of a batch, layer by layer."""
    return [layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)]


def _floats(logits: mx.array) -> Logits:
    return np.array(logits.astype(mx.float32))
