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

from bitquilt.engines import llama_api
from bitquilt.engines.backend import Floats, common_prefix
from bitquilt.engines.engine import ModelInfo, Sampling
from bitquilt.errors import UserError

UBATCH = 512
LEAST_CAPACITY = 1024
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
    """One model and at most one context, whose sequences are the rows."""

    def __init__(self, path: Path, exact: bool, threads: int) -> None:
        self._api: Any = llama_api.load_library()
        self._api.llama_backend_init()
        self._exact, self._threads = exact, threads
        self._context: int | None = None
        self._sequences = self._capacity = 0
        self._held: list[list[int]] = []
        self._live: list[int] = []
        self._batch = self._api.llama_batch_init(UBATCH, 0, 1)
        for i in range(UBATCH):
            self._batch.n_seq_id[i] = 1
        params = self._api.llama_model_default_params()
        self._model = self._api.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise UserError(f"llama.cpp cannot load {path}; check it with bitquilt inspect")
        self._vocab = self._api.llama_model_get_vocab(self._model)
        template = self._api.llama_model_chat_template(self._model, None)
        self.info = ModelInfo(
            vocabulary=self._api.llama_vocab_n_tokens(self._vocab),
            context=self._api.llama_model_n_ctx_train(self._model),
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

    def control_text(self, token: int) -> str | None:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        if not self._api.llama_vocab_is_control(self._vocab, token):
            return None
        name: bytes = self._api.llama_vocab_get_text(self._vocab, token)
        return name.decode()

    def ends_turn(self, token: int) -> bool:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def window(self, tokens: Sequence[int]) -> Floats:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        self._reserve(1, len(tokens))
        self._keep(0, 0)
        return np.concatenate([self._append(0, chunk, len(chunk)) for chunk in _chunks(tokens)])

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[Floats, int]:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        self._reserve(len(prompts), max(map(len, prompts)) + room)
        last, fed = [], 0
        # The first sequence reads every prompt, its own at the end, and the others copy it.
        for row in reversed(range(len(prompts))):
            kept = self._keep(0, common_prefix(self._held[0], prompts[row]))
            missing = prompts[row][kept:]
            last.append([self._append(0, chunk, 1) for chunk in _chunks(missing)][-1])
            fed += len(missing)
            if row > 0:
                self._copy(row)
        self._live = list(range(len(prompts)))
        return np.concatenate(last[::-1]), fed

    def step(self, tokens: Sequence[int]) -> Floats:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        logits = self._decode(tokens, self._live, range(len(tokens)))
        for sequence, token in zip(self._live, tokens, strict=True):
            self._held[sequence].append(token)
        return logits

    def retain(self, rows: Sequence[int]) -> None:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        self._live = [self._live[row] for row in rows]

    def _reserve(self, sequences: int, capacity: int) -> None:
        """Make sure of a context for so many sequences of so many tokens; a new one holds none.

        Contexts double, so that a conversation that grows is seldom read again.
        """
        if sequences <= self._sequences and capacity <= self._capacity:
            return
        if self._context:
            self._api.llama_free(self._context)
        self._sequences = max(sequences, 1)
        self._capacity = max(LEAST_CAPACITY, 1 << (capacity - 1).bit_length())
        self._held = [[] for _ in range(self._sequences)]
        params = self._api.llama_context_default_params()
        params.n_ctx, params.n_seq_max = self._sequences * self._capacity, self._sequences
        params.n_batch = params.n_ubatch = UBATCH
        params.n_outputs_max = params.n_outputs_max_per_seq = UBATCH
        params.n_threads = params.n_threads_batch = self._threads
        if self._exact:
            params.type_k = params.type_v = llama_api.TYPE_F32
            params.flash_attn_type = llama_api.FLASH_ATTENTION_OFF
        self._context = self._api.llama_init_from_model(self._model, params)
        if not self._context:
            self._sequences = self._capacity = 0
            raise UserError(
                f"llama.cpp cannot make a context of {params.n_ctx:,} tokens; "
                "ask for fewer, or free memory"
            )
        self._memory = self._api.llama_get_memory(self._context)

    def _keep(self, sequence: int, length: int) -> int:
        """Forget all but the first tokens of a sequence; how many the memory could keep."""
        if not self._api.llama_memory_seq_rm(self._memory, sequence, length, -1):
            self._api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            length = 0
        del self._held[sequence][length:]
        return length

    def _copy(self, sequence: int) -> None:
        """Make a sequence hold what the first one holds."""
        self._api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self._api.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)
        self._held[sequence] = list(self._held[0])

    def _append(self, sequence: int, tokens: Sequence[int], outputs: int) -> Floats:
        """Run one batch of one sequence; logits after the last ``outputs`` tokens, a copy."""
        n = len(tokens)
        logits = self._decode(tokens, [sequence] * n, range(n - outputs, n)).copy()
        self._held[sequence] += tokens
        return logits

    def _decode(self, tokens: Sequence[int], sequences: Sequence[int], outputs: range) -> Floats:
        """Run one batch of tokens, each at the end of its sequence.

        Returns:
            Logits after the tokens numbered in ``outputs``, float32 [len(outputs), V], in
            llama.cpp's own memory.
        """
        n = len(tokens)
        batch = self._batch
        batch.n_tokens = n
        lengths = [len(held) for held in self._held]
        for i, (token, sequence) in enumerate(zip(tokens, sequences, strict=True)):
            batch.token[i], batch.pos[i] = token, lengths[sequence]
            batch.seq_id[i][0], batch.logits[i] = sequence, i in outputs
            lengths[sequence] += 1
        if self._api.llama_decode(self._context, batch) != 0:
            raise UserError("llama.cpp ran out of context or memory; ask for fewer tokens")
        logits = self._api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (len(outputs), self.info.vocabulary))

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
