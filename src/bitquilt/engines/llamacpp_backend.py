"""llama.cpp as a backend. A failed assertion in it ends the process: run it in a child."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bitquilt.engines import llama_api
from bitquilt.engines.backend import Logits, common_prefix
from bitquilt.engines.composing import Composer
from bitquilt.engines.constraint import Grammars
from bitquilt.engines.engine import ModelInfo, Sampling
from bitquilt.engines.image_encoder import ImageEncoder
from bitquilt.engines.set_aside import SetAside
from bitquilt.errors import UserError
from bitquilt.gguf.sampling import SAMPLING_KEYS
from bitquilt.gguf.tokenizer import NORMALIZER, is_composed
from bitquilt.models.chat_template import TOOL_USE

UBATCH = 512
"""Tokens that llama.cpp computes at a time."""
LEAST_CELLS, LEAST_SEQUENCES = 1024, 8
"""The first context has room for this many tokens and rows."""
ASIDE_TOKENS, ASIDE_LEAST = 4096, 8
"""So many tokens at least are kept outside of the context; for so few nothing is moved."""
META_VALUE_BYTES = 64

_T = TypeVar("_T")
_Missing = tuple[int, int, bool]
"""A token to read, its sequence, and whether logits are wanted after it."""


class LlamaCppBackend:
    """One model and at most one context, whose sequences are the rows.

    Sequences share the cells of the context, one for each token. A sequence whose row has ended
    keeps what it holds until its place is needed, and is set aside then: a conversation may go on
    from there.
    """

    def __init__(
        self,
        path: str,
        exact: bool,
        threads: int | None,
        vocabulary_only: bool = False,
        vision: str | None = None,
    ) -> None:
        """Load a GGUF file.

        Args:
            path: the file.
            exact: float32 KV cache and no flash attention, to compare with another engine.
            threads: None for one per physical core.
            vocabulary_only: load the header, which is enough for tokens; there may be no weights.
                Text is read as llama.cpp reads it, whatever the model's own tokenizer does.
            vision: the file of its vision tower, which is loaded with the first image.

        Raises:
            EngineMissingError: this llama.cpp does not know the file's architecture.
            UserError: llama.cpp refuses the file.
        """
        self._api: Any = llama_api.load_library()
        self._api.llama_backend_init()
        self._exact, self._threads = exact, threads or physical_cores()
        self._context: int | None = None
        self._cells = 0
        self._held: list[list[int]] = []
        self._aside = SetAside()
        self._live: list[int] = []
        self._batch = self._api.llama_batch_init(UBATCH, 0, 1)
        for i in range(UBATCH):
            self._batch.n_seq_id[i] = 1
        params = self._api.llama_model_default_params()
        params.vocab_only = vocabulary_only
        self._model = llama_api.load_model(self._api, path, params)
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self._vision = vision
        self._composes = not vocabulary_only and is_composed(
            self._stated(NORMALIZER), self._stated("tokenizer.ggml.pre")
        )
        self.info = ModelInfo(
            name=path,
            vocabulary=self._api.llama_vocab_n_tokens(self._vocab),
            context=self._api.llama_model_n_ctx_train(self._model),
            chat_template=self._template(None),
            tool_template=self._template(TOOL_USE),
            special_tokens=self._special_tokens(),
            sampling=self._sampling_defaults(),
            sees=vision is not None,
        )

    def see(self, image: bytes) -> list[int]:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        return self._images.see(image)

    @cached_property
    def _images(self) -> ImageEncoder:
        if self._vision is None:
            raise UserError("the model has no vision tower beside it, so it reads text only")
        return ImageEncoder(
            self._api, self._model, self._vision, self.info.vocabulary, self._threads
        )

    @cached_property
    def _seen(self) -> Any:
        """A batch of embeddings in place of tokens."""
        batch = self._api.llama_batch_init(UBATCH, self._images.width, 1)
        for i in range(UBATCH):
            batch.n_seq_id[i] = 1
        return batch

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        return self._read_as_is(
            self._composer.compose(text) if self._composes else text, add_special
        )

    @cached_property
    def _composer(self) -> Composer:
        return Composer(
            self._api.llama_vocab_get_text(self._vocab, token).decode()
            for token in range(self.info.vocabulary)
            if self._api.llama_vocab_get_attr(self._vocab, token)
            & (llama_api.CONTROL | llama_api.USER_DEFINED)
        )

    def _read_as_is(self, text: str, add_special: bool) -> list[int]:
        raw = text.encode()
        room = len(raw) + 8
        tokens = (llama_api.Token * room)()
        count = self._api.llama_tokenize(
            self._vocab, raw, len(raw), tokens, room, add_special, True
        )
        return list(tokens[:count])

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """See :class:`~bitquilt.engines.backend.Backend`.

        llama.cpp's own detokenizer takes spaces out, before commas for example, for many models;
        what a token adds to a text is not what it is decoded to then.
        """
        texts = (token for token in tokens if token < self.info.vocabulary)  # others are images
        told = (token for token in texts if special or self.control_text(token) is None)
        pieces = map(self._piece, told)
        return b"".join(pieces).decode(errors="replace")

    @lru_cache(maxsize=1 << 16)  # noqa: B019
    def control_text(self, token: int) -> str | None:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        if not self._api.llama_vocab_is_control(self._vocab, token):
            return None
        name: bytes = self._api.llama_vocab_get_text(self._vocab, token)
        return name.decode()

    def ends_turn(self, token: int) -> bool:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    @cached_property
    def grammars(self) -> Grammars:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        return Grammars.of(
            [self._piece(token) for token in range(self.info.vocabulary)],
            special=list(filter(self._is_special, range(self.info.vocabulary))),
            ends=list(filter(self.ends_turn, range(self.info.vocabulary))),
            tokenize=lambda text: self._read_as_is(text, add_special=False),
        )

    @lru_cache(maxsize=1 << 16)  # noqa: B019 (the backend lives as long as its process)
    def _piece(self, token: int) -> bytes:
        room = 64
        while True:
            text = ctypes.create_string_buffer(room)
            count = self._api.llama_token_to_piece(self._vocab, token, text, room, 0, True)
            if count >= 0:
                return text.raw[:count]
            room = -count

    def _is_special(self, token: int) -> bool:
        """Tell whether a token is a mark rather than text: a control token, or a tag."""
        text: bytes = self._api.llama_vocab_get_text(self._vocab, token)
        tag = text.startswith(b"<") and text.endswith(b">") and len(text) > 2
        stated = self._api.llama_vocab_get_attr(self._vocab, token)
        return bool(stated & llama_api.CONTROL or (tag and stated & llama_api.USER_DEFINED))

    def window(self, tokens: Sequence[int]) -> Logits:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        return np.concatenate([logits.copy() for logits in self.read(tokens)])

    def read(self, tokens: Sequence[int]) -> Iterator[Logits]:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        self._reserve(1, len(tokens))
        self._forget(range(len(self._held)))
        for chunk in _chunks(tokens):
            yield self._decode(chunk, [0] * len(chunk), range(len(chunk)))
            self._held[0] += chunk

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[Logits, int]:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        cells = sum(map(len, prompts)) + room * len(prompts)
        self._reserve(len(prompts), cells)
        self._live = live = assign(self._held, prompts)
        others = set(range(len(self._held))) - set(live)
        if cells + sum(len(self._held[sequence]) for sequence in others) > self._cells:
            for sequence in others:
                self._set_aside(sequence)
            self._forget(others)
        for sequence, prompt in zip(live, prompts, strict=True):
            self._take_up(sequence, prompt)
        alone: list[int] = []
        copies: dict[int, int] = {}
        for row, prompt in enumerate(prompts):
            # what another row is about to read need not be read twice
            shared = {other: common_prefix(prompts[other], prompt) for other in alone}
            most = max(shared, key=shared.__getitem__, default=row)
            if shared.get(most, 0) > common_prefix(self._held[live[row]], prompt):
                copies[row] = most
            else:
                alone.append(row)
        logits, prefilled = self._read(prompts, alone)
        for row, other in copies.items():
            self._copy(live[other], live[row])
        copied, more = self._read(prompts, list(copies))
        order = np.argsort([*alone, *copies])
        return np.stack([*logits, *copied])[order], prefilled + more

    def step(self, tokens: Sequence[int]) -> Logits:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        logits = self._decode(tokens, self._live, range(len(tokens)))
        for sequence, token in zip(self._live, tokens, strict=True):
            self._held[sequence].append(token)
        return logits

    def retain(self, rows: Sequence[int]) -> None:
        """See :class:`~bitquilt.engines.backend.Backend`."""
        self._live = [self._live[row] for row in rows]

    def verify(self, tokens: Sequence[Sequence[int]]) -> list[Logits]:
        """See :class:`~bitquilt.engines.drafting.Verifier`; valid until the next call."""
        each = list(zip(self._live, tokens, strict=True))
        sequences = [sequence for sequence, read in each for _ in read]
        flat = [token for read in tokens for token in read]
        logits = self._decode(flat, sequences, range(len(flat)))
        for sequence, read in each:
            self._held[sequence] += read
        return np.split(logits, np.cumsum([len(read) for read in tokens])[:-1])

    def retract(self, counts: Sequence[int]) -> None:
        """See :class:`~bitquilt.engines.drafting.Verifier`."""
        for sequence, count in zip(self._live, counts, strict=True):
            if count:
                self._keep(sequence, len(self._held[sequence]) - count)

    at_once = UBATCH

    @property
    def retracts(self) -> bool:
        """See :class:`~bitquilt.engines.drafting.Verifier`."""
        api, model = self._api, self._model
        return not (api.llama_model_is_recurrent(model) or api.llama_model_is_hybrid(model))

    def ordinary_text(self, token: int) -> str | None:
        """See :class:`~bitquilt.engines.drafting.Verifier`."""
        if not self._api.llama_vocab_get_attr(self._vocab, token) & llama_api.NORMAL:
            return None
        text: bytes = self._api.llama_vocab_get_text(self._vocab, token)
        return text.decode(errors="replace")

    def _reserve(self, sequences: int, cells: int) -> None:
        """Make sure that the context has room for so many sequences and tokens.

        Where it has not, a new and empty one takes its place, of twice the size, so that a
        conversation that grows is seldom read again.
        """
        if sequences <= len(self._held) and cells <= self._cells:
            return
        if self._context:
            for sequence in range(len(self._held)):
                self._set_aside(sequence)
            self._api.llama_free(self._context)
        self._cells = max(LEAST_CELLS, self._cells, _doubled(cells))
        self._held = [[] for _ in range(max(LEAST_SEQUENCES, len(self._held), _doubled(sequences)))]
        params = self._api.llama_context_default_params()
        params.n_ctx, params.n_seq_max = self._cells, len(self._held)
        params.kv_unified = True
        params.n_batch = params.n_ubatch = UBATCH
        params.n_outputs_max = params.n_outputs_max_per_seq = UBATCH
        params.n_threads = params.n_threads_batch = self._threads
        if self._exact:
            params.type_k = params.type_v = llama_api.TYPE_F32
            params.flash_attn_type = llama_api.FLASH_ATTENTION_OFF
        self._context = self._api.llama_init_from_model(self._model, params)
        if not self._context:
            self._cells, self._held = 0, []
            raise UserError(
                f"llama.cpp cannot make a context of {params.n_ctx:,} tokens; "
                "ask for fewer, or free memory"
            )
        self._memory = self._api.llama_get_memory(self._context)

    def _keep(self, sequence: int, length: int) -> int:
        """Forget all but the first tokens of a sequence; returns how many could be kept."""
        if not self._api.llama_memory_seq_rm(self._memory, sequence, length, -1):
            self._api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            length = 0
        del self._held[sequence][length:]
        return length

    def _forget(self, sequences: Iterable[int]) -> None:
        for sequence in sequences:
            self._keep(sequence, 0)

    def _take_up(self, sequence: int, prompt: Sequence[int]) -> None:
        """Make a sequence hold what was set aside, where that is more of a prompt."""
        shared = common_prefix(self._held[sequence], prompt)
        missing = len(prompt) - 1 - shared
        if not missing:
            return
        found = self._aside.find(prompt, shared + ASIDE_LEAST) if missing > ASIDE_LEAST else None
        if len(self._held[sequence]) - shared > ASIDE_LEAST:
            self._set_aside(sequence)  # for it forgets what comes after
        if found is None:
            return
        tokens, state = found
        self._keep(sequence, 0)
        where = state.ctypes.data_as(ctypes.c_void_p)
        if self._api.llama_state_seq_set_data(self._context, where, state.size, sequence):
            self._held[sequence] = tokens  # else there is no room, and it is read

    def _set_aside(self, sequence: int) -> None:
        """Keep what a sequence holds outside of the context, if it is worth that."""
        held = self._held[sequence]
        if len(held) < ASIDE_LEAST:
            return
        state = np.empty(self._api.llama_state_seq_get_size(self._context, sequence), np.uint8)
        where = state.ctypes.data_as(ctypes.c_void_p)
        if self._api.llama_state_seq_get_data(self._context, where, state.size, sequence):
            self._aside.keep(held, state, max(ASIDE_TOKENS, self._cells))

    def _copy(self, source: int, sequence: int) -> None:
        """Make a sequence hold what another holds."""
        self._api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self._api.llama_memory_seq_cp(self._memory, source, sequence, -1, -1)
        self._held[sequence] = list(self._held[source])

    def _read(
        self, prompts: Sequence[Sequence[int]], rows: Sequence[int]
    ) -> tuple[list[Logits], int]:
        """Read what is missing of the prompts of some rows, in as few batches as possible.

        Returns:
            Logits after each of them, float32 [V], and the number of tokens computed.
        """
        missing: list[_Missing] = []
        for row in rows:
            sequence, prompt = self._live[row], prompts[row]
            kept = self._keep(sequence, common_prefix(self._held[sequence], prompt))
            last = len(prompt) - 1
            missing += [(prompt[i], sequence, i == last) for i in range(kept, len(prompt))]
        logits: list[Logits] = []
        for chunk in self._batches(missing):
            outputs = [i for i, (_, _, wanted) in enumerate(chunk) if wanted]
            tokens, sequences = [token for token, _, _ in chunk], [where for _, where, _ in chunk]
            logits.extend(self._decode(tokens, sequences, outputs).copy())
            for token, sequence in zip(tokens, sequences, strict=True):
                self._held[sequence].append(token)
        return logits, len(missing)

    def _batches(self, missing: Sequence[_Missing]) -> Iterator[Sequence[_Missing]]:
        """Cut what is to be read into batches: of tokens, or of one image in one sequence."""

        def kind(one: _Missing) -> tuple[int, int]:
            token, sequence, _ = one
            if token < self.info.vocabulary:
                return -1, -1
            return self._images.image_of(token), sequence

        for (image, _), run in groupby(missing, kind):
            some = list(run)
            if image >= 0 and self._images.whole and len(some) > UBATCH:
                raise UserError(
                    f"an image takes {len(some)} tokens, but bitquilt reads at most {UBATCH} at "
                    "once; give a smaller image"
                )
            yield from _chunks(some)

    def _decode(
        self, tokens: Sequence[int], sequences: Sequence[int], outputs: Sequence[int]
    ) -> Logits:
        """Run one batch of tokens, each at the end of its sequence.

        Returns:
            Logits after the tokens numbered in ``outputs``, float32 [len(outputs), V], in
            llama.cpp's own memory.
        """
        n = len(tokens)
        image = tokens[0] >= self.info.vocabulary
        batch = self._seen if image else self._batch
        batch.n_tokens = n
        if image:
            rows = np.ctypeslib.as_array(batch.embd, (UBATCH, self._images.width))
            rows[:n] = self._images.embeddings(tokens)
        lengths = [len(held) for held in self._held]
        for i, (token, sequence) in enumerate(zip(tokens, sequences, strict=True)):
            if not image:
                batch.token[i] = token
            batch.pos[i] = lengths[sequence]
            batch.seq_id[i][0], batch.logits[i] = sequence, i in outputs
            lengths[sequence] += 1
        whole = image and self._images.whole
        if whole:
            self._api.llama_set_causal_attn(self._context, False)
        failed = self._api.llama_decode(self._context, batch) != 0
        if whole:
            self._api.llama_set_causal_attn(self._context, True)
        if failed:
            raise UserError("llama.cpp ran out of context or memory; ask for fewer tokens")
        if not outputs:
            return np.empty((0, self.info.vocabulary), dtype=np.float32)
        logits = self._api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (len(outputs), self.info.vocabulary))

    def _template(self, name: str | None) -> str | None:
        raw = self._api.llama_model_chat_template(self._model, name and name.encode())
        return raw.decode(errors="replace") if raw else None

    def _special_tokens(self) -> dict[str, str]:
        """The special tokens of the file. Where it states none, llama.cpp may take a comma."""
        found = {
            "bos_token": self._api.llama_vocab_bos(self._vocab),
            "eos_token": self._api.llama_vocab_eos(self._vocab),
        }
        return {
            role: self._api.llama_vocab_get_text(self._vocab, index).decode()
            for role, index in found.items()
            if index >= 0
            and (self._stated(f"tokenizer.ggml.{role}_id") or self.control_text(index) is not None)
        }

    def _stated(self, key: str) -> str | None:
        """Return a value of the file's metadata as text; None where it has none."""
        value = ctypes.create_string_buffer(META_VALUE_BYTES)
        length = self._api.llama_model_meta_val_str(
            self._model, key.encode(), value, META_VALUE_BYTES
        )
        return value.value.decode() if length > 0 else None

    def _sampling_defaults(self) -> Sampling:
        found: dict[str, Any] = {}
        for field, key in SAMPLING_KEYS.items():
            if (stated := self._stated(key)) is not None:
                found[field] = int(stated) if field == "top_k" else float(stated)
        return Sampling(**found)


def assign(held: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]]) -> list[int]:
    """Give each prompt the sequence that holds most of it, and none to two prompts."""
    pairs = (
        (common_prefix(tokens, prompt), -sequence, -row)
        for row, prompt in enumerate(prompts)
        for sequence, tokens in enumerate(held)
    )
    found: dict[int, int] = {}
    for _, sequence, row in sorted(pairs, reverse=True):
        if -row not in found and -sequence not in found.values():
            found[-row] = -sequence
    return [found[row] for row in range(len(prompts))]


def _doubled(least: int) -> int:
    """Return the next power of two."""
    return 1 << (least - 1).bit_length()


def _chunks(tokens: Sequence[_T]) -> list[Sequence[_T]]:
    return [tokens[start : start + UBATCH] for start in range(0, len(tokens), UBATCH)]


def physical_cores() -> int:
    """Count cores, not hyper-threads: twice the threads on the same arithmetic units are slower."""
    if sys.platform == "linux":
        allowed = os.sched_getaffinity(0)
        cores = set()
        for block in Path("/proc/cpuinfo").read_text().split("\n\n"):
            fields = dict(re.findall(r"^(processor|physical id|core id)\s*: (\d+)", block, re.M))
            if fields and int(fields["processor"]) in allowed:
                cores.add((fields.get("physical id"), fields.get("core id", fields["processor"])))
        return len(cores) or len(allowed)
    return os.cpu_count() or 1
