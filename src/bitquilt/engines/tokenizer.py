"""The Hugging Face tokenizer of a directory, as the MLX and PyTorch engines use it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from llguidance import LLTokenizer

from bitquilt.engines.constraint import Grammars
from bitquilt.engines.engine import ModelInfo, Sampling
from bitquilt.errors import UserError
from bitquilt.gguf.sampling import SAMPLING_KEYS
from bitquilt.models.chat_template import TOOL_USE, default_template, templates_by_name
from bitquilt.models.tokenizer import load_tokenizer


class HubTokenizer:
    """Turns text to ids and back, and knows the directory's special tokens and sampling."""

    def __init__(self, directory: Path, config: dict[str, Any], generation: dict[str, Any]) -> None:
        self._tokenizer = load_tokenizer(directory)
        ends = [config.get("eos_token_id"), generation.get("eos_token_id")]
        self._ends = {self._tokenizer.eos_token_id, *_flatten(ends)} - {None}
        added = self._tokenizer.added_tokens_decoder.items()
        self._control = {token: text.content for token, text in added if text.special}
        self.info = ModelInfo(
            vocabulary=int(config["vocab_size"]),
            context=int(config["max_position_embeddings"]),
            chat_template=default_template(self._tokenizer.chat_template),
            tool_template=templates_by_name(self._tokenizer.chat_template).get(TOOL_USE),
            special_tokens=self._special_tokens(),
            sampling=recommended_sampling(generation),
            response_template=self._tokenizer.response_template,
        )

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        return list(self._tokenizer(text, add_special_tokens=add_special)["input_ids"])

    def see(self, image: bytes) -> list[int]:
        """See :class:`~bitquilt.engines.engine.Engine`: no model sees in these engines."""
        raise UserError("images are read in llama.cpp only; give a GGUF file with its mmproj file")

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return text

    def control_text(self, token: int) -> str | None:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        return self._control.get(token)

    def ends_turn(self, token: int) -> bool:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        return token in self._ends

    @cached_property
    def grammars(self) -> Grammars:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        backend = self._tokenizer.backend_tokenizer
        size = max(self.info.vocabulary, backend.get_vocab_size())
        tokenizer = LLTokenizer(backend.to_str(), n_vocab=size, eos_token=sorted(self._ends))
        return Grammars(tokenizer, self.info.vocabulary)

    def _special_tokens(self) -> dict[str, str]:
        named = {role: getattr(self._tokenizer, role) for role in ("bos_token", "eos_token")}
        return {role: text for role, text in named.items() if text is not None}


def recommended_sampling(generation: dict[str, Any]) -> Sampling:
    """Read the settings of a generation_config.json: greedy unless it has ``do_sample``."""
    if not generation.get("do_sample"):
        return Sampling()
    stated = {f: generation[f] for f in SAMPLING_KEYS if generation.get(f) is not None}
    return Sampling(**{"temperature": 1.0, **stated})


def _flatten(values: Sequence[int | list[int] | None]) -> list[int | None]:
    nested = [value if isinstance(value, list) else [value] for value in values]
    return [item for group in nested for item in group]
