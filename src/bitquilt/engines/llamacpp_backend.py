"""llama.cpp as a backend. A failed assertion in it ends the process: run it in a child."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitquilt.engines import llama_api
from bitquilt.engines.engine import ModelInfo, Sampling
from bitquilt.errors import UserError

UBATCH = 512
META_VALUE_BYTES = 64

_SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def load(path: str, exact: bool, threads: int | None) -> LlamaCpp:
    """Load a GGUF file.

    Args:
        path: the file.
        exact: float32 KV cache and no flash attention, to compare with another engine.
        threads: None for one per physical core.

    Raises:
        UserError: llama.cpp refuses the file.
    """
    return LlamaCpp(Path(path), exact, threads or physical_cores())


class LlamaCpp:
    """One model and at most one context."""

    def __init__(self, path: Path, exact: bool, threads: int) -> None:
        self._api: Any = llama_api.load_library()
        self._api.llama_backend_init()
        self._exact, self._threads = exact, threads
        self._context: int | None = None
        self._position = 0
        params = self._api.llama_model_default_params()
        self._model = self._api.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise UserError(f"llama.cpp cannot load {path}; check it with bitquilt inspect")
        self._vocab = self._api.llama_model_get_vocab(self._model)
        template = self._api.llama_model_chat_template(self._model, None)
        self.info = ModelInfo(
            vocabulary=self._api.llama_vocab_n_tokens(self._vocab),
            chat_template=template.decode() if template else None,
            special_tokens=self._special_tokens(),
            sampling=self._sampling_defaults(),
        )

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        raw = text.encode()
        room = len(raw) + 8
        tokens = (llama_api.Token * room)()
        count = self._api.llama_tokenize(
            self._vocab, raw, len(raw), tokens, room, add_special, True
        )
        return list(tokens[:count])

    def decode(self, tokens: Sequence[int]) -> str:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        ids = (llama_api.Token * len(tokens))(*tokens)
        room = 64 * max(1, len(tokens))
        while True:
            text = ctypes.create_string_buffer(room)
            count = self._api.llama_detokenize(self._vocab, ids, len(ids), text, room, True, False)
            if count >= 0:
                return text.raw[:count].decode(errors="replace")
            room = -count

    def ends_turn(self, token: int) -> bool:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def window(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        self.begin(len(tokens))
        rows = [self._decode(chunk, all_rows=True) for chunk in _chunks(tokens)]
        return np.concatenate(rows)

    def begin(self, capacity: int) -> None:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        if self._context:
            self._api.llama_free(self._context)
        params = self._api.llama_context_default_params()
        params.n_ctx = capacity
        params.n_batch = params.n_ubatch = UBATCH
        params.n_outputs_max = params.n_outputs_max_per_seq = UBATCH
        params.n_threads = params.n_threads_batch = self._threads
        if self._exact:
            params.type_k = params.type_v = llama_api.TYPE_F32
            params.flash_attn_type = llama_api.FLASH_ATTENTION_OFF
        self._context = self._api.llama_init_from_model(self._model, params)
        self._position = 0
        if not self._context:
            raise UserError(
                f"llama.cpp cannot make a context of {capacity:,} tokens; "
                "ask for fewer, or free memory"
            )

    def feed(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        for chunk in _chunks(tokens):
            last = self._decode(chunk, all_rows=False)
        row: npt.NDArray[np.float32] = last[-1]
        return row

    def _decode(self, tokens: Sequence[int], *, all_rows: bool) -> npt.NDArray[np.float32]:
        """Run one batch; float32 [len(tokens), V], or [1, V] of the last token."""
        n = len(tokens)
        sequence = ctypes.pointer(ctypes.c_int32(0))
        batch = llama_api.Batch(
            n_tokens=n,
            token=(llama_api.Token * n)(*tokens),
            pos=(ctypes.c_int32 * n)(*range(self._position, self._position + n)),
            n_seq_id=(ctypes.c_int32 * n)(*[1] * n),
            seq_id=(ctypes.POINTER(ctypes.c_int32) * n)(*[sequence] * n),
            logits=(ctypes.c_int8 * n)(*([1] * n if all_rows else [0] * (n - 1) + [1])),
        )
        if self._api.llama_decode(self._context, batch) != 0:
            raise UserError("llama.cpp ran out of context or memory; ask for fewer tokens")
        self._position += n
        logits = self._api.llama_get_logits(self._context)
        shape = (n if all_rows else 1, self.info.vocabulary)
        return np.ctypeslib.as_array(logits, shape).copy()

    def _special_tokens(self) -> dict[str, str]:
        found = {
            "bos_token": self._api.llama_vocab_bos(self._vocab),
            "eos_token": self._api.llama_vocab_eos(self._vocab),
        }
        return {
            role: self._api.llama_vocab_get_text(self._vocab, index).decode()
            for role, index in found.items()
            if index >= 0
        }

    def _sampling_defaults(self) -> Sampling:
        found: dict[str, Any] = {}
        for field, key in _SAMPLING_KEYS.items():
            value = ctypes.create_string_buffer(META_VALUE_BYTES)
            if (
                self._api.llama_model_meta_val_str(
                    self._model, key.encode(), value, META_VALUE_BYTES
                )
                > 0
            ):
                kind = int if field == "top_k" else float
                found[field] = kind(value.value)
        return Sampling(**found)


def _chunks(tokens: Sequence[int]) -> list[Sequence[int]]:
    return [tokens[start : start + UBATCH] for start in range(0, len(tokens), UBATCH)]


def physical_cores() -> int:
    """Cores, not hyper-threads: twice the threads on the same arithmetic units are slower."""
    if sys.platform == "linux":
        allowed = os.sched_getaffinity(0)
        cores = set()
        for block in Path("/proc/cpuinfo").read_text().split("\n\n"):
            fields = dict(re.findall(r"^(processor|physical id|core id)\s*: (\d+)", block, re.M))
            if fields and int(fields["processor"]) in allowed:
                cores.add((fields.get("physical id"), fields.get("core id", fields["processor"])))
        return len(cores) or len(allowed)
    return os.cpu_count() or 1
