"""What llama.cpp sees: an image as embeddings, under numbers that stand for tokens.

An image gets numbers beyond the vocabulary, one for each embedding, and always the same ones. To
everything that keeps, compares and counts the tokens of a prompt they are tokens like any others;
only where a batch is made for llama.cpp are they looked up here.

Letters: n embeddings of an image, D their width.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitquilt.engines import mtmd_api
from bitquilt.errors import UserError

KEPT_IMAGES = 16
"""The embeddings of so many images are kept; those of a large one take 60 MB."""


class ImageEncoder:
    """A vision tower beside a language model."""

    def __init__(self, api: Any, model: int, path: str, vocabulary: int, threads: int) -> None:
        """Load a file that llama.cpp calls mmproj.

        Args:
            api: llama.cpp's library.
            model: the language model in it.
            path: of the file.
            vocabulary: how many tokens the language model has.
            threads: to compute with.

        Raises:
            UserError: it is none, or another model's, or of a kind that is not run here.
        """
        mtmd_api.load_mtmd(api)
        params = api.mtmd_context_params_default()
        params.warmup = params.print_timings = False
        params.n_threads = threads
        self._api, self._path, self._next = api, path, vocabulary
        self._context = api.mtmd_init_from_file(os.fsencode(path), model, params)
        if not self._context or not api.mtmd_support_vision(self._context):
            raise UserError(
                f"llama.cpp cannot see with {path}; it belongs to another model or is damaged: "
                "move it away, or make it again with `bitquilt quantize`"
            )
        if api.mtmd_decode_use_mrope(self._context):
            raise UserError(
                f"{path} uses two-dimensional positions for images, which bitquilt cannot run; use "
                "llama.cpp's own server for images"
            )
        self.width = int(api.llama_model_n_embd_inp(model))
        self.whole = bool(api.mtmd_decode_use_non_causal(self._context, None))
        """Whether every part of an image is seen with every other, so that it is read at once."""
        self._numbers: dict[str, list[int]] = {}
        self._firsts: dict[int, str] = {}
        self._embeddings: OrderedDict[str, npt.NDArray[np.float32]] = OrderedDict()

    def see(self, image: bytes) -> list[int]:
        """Encode an image.

        Args:
            image: a file of PNG, JPEG, GIF or BMP.

        Returns:
            the tokens that the model reads for it: the tower's numbers, and control tokens.

        Raises:
            UserError: it cannot be read.
        """
        key = hashlib.sha256(image).hexdigest()
        if key not in self._embeddings:
            self._encode(key, image)
        self._embeddings.move_to_end(key)
        return self._numbers[key]

    def embeddings(self, numbers: Sequence[int]) -> npt.NDArray[np.float32]:
        """The embeddings of neighbouring numbers of one image, float32 [n, D]."""
        first = self.image_of(numbers[0])
        kept = self._embeddings.get(self._firsts[first])
        if kept is None:
            raise UserError("an image of the conversation is no longer kept; ask again")
        return kept[numbers[0] - first : numbers[-1] - first + 1]

    def image_of(self, number: int) -> int:
        """The first number of the image that a number belongs to."""
        return max(first for first in self._firsts if first <= number)

    def _encode(self, key: str, image: bytes) -> None:
        api = self._api
        options = api.mtmd_helper_init_opt_default()
        made = api.mtmd_helper_bitmap_init_from_buf(
            self._context, image, len(image), False, options
        )
        if not made.bitmap:
            raise UserError("an image cannot be read; give a file of PNG, JPEG, GIF or BMP")
        chunks = api.mtmd_input_chunks_init()
        try:
            text = mtmd_api.MarkedText(mtmd_api.MARKER, len(mtmd_api.MARKER), False, True)
            bitmaps = (ctypes.c_void_p * 1)(made.bitmap)
            if api.mtmd_tokenize(self._context, chunks, ctypes.byref(text), bitmaps, 1) != 0:
                raise UserError("llama.cpp cannot prepare an image; give a smaller one")
            self._take(key, chunks)
        finally:
            api.mtmd_input_chunks_free(chunks)
            api.mtmd_bitmap_free(made.bitmap)

    def _take(self, key: str, chunks: int) -> None:
        """Keep what the chunks of an image are; the same image has the numbers that it had."""
        numbers: list[int] = []
        parts: list[npt.NDArray[np.float32]] = []
        known = self._numbers.get(key)
        first = self._next if known is None else min(n for n in known if n in self._firsts)
        for chunk, kind in self._chunks(chunks):
            if kind == mtmd_api.TEXT_CHUNK:
                count = ctypes.c_size_t()
                tokens = self._api.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
                numbers += tokens[: count.value]
                continue
            n = self._api.mtmd_input_chunk_get_n_tokens(chunk)
            if self._api.mtmd_encode_chunk(self._context, chunk) != 0:
                raise UserError("llama.cpp cannot encode an image; give a smaller one")
            output = self._api.mtmd_get_output_embd(self._context)
            numbers += range(first + sum(map(len, parts)), first + sum(map(len, parts)) + n)
            parts.append(np.ctypeslib.as_array(output, (n, self.width)).copy())
        self._embeddings[key] = np.concatenate(parts)
        if known is None:
            self._numbers[key], self._firsts[first] = numbers, key
            self._next += len(self._embeddings[key])
        while len(self._embeddings) > KEPT_IMAGES:
            self._embeddings.popitem(last=False)

    def _chunks(self, chunks: int) -> Iterator[tuple[int, int]]:
        for i in range(self._api.mtmd_input_chunks_size(chunks)):
            chunk = self._api.mtmd_input_chunks_get(chunks, i)
            yield chunk, self._api.mtmd_input_chunk_get_type(chunk)
