"""An engine whose model is a function from the text so far to what comes next."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bitquilt.engines import GenerationRequest, ModelInfo, Sampling
from bitquilt.engines.backend import Logits
from bitquilt.engines.constraint import Grammars
from bitquilt.engines.generation import Generation

END, OPEN, CLOSE, OTHER = 256, 257, 258, 259
CONTROL = {OPEN: "[THINK]", CLOSE: "[/THINK]", OTHER: "[OTHER]"}
END_TEXT = "\0"
"""What a model says to end its turn."""

Model = Callable[[str], dict[str, float]]
"""All text so far → logits of the next characters or control tokens."""


class Book:
    """Tokens are bytes, and control tokens for tags; sampling and batching are the real ones."""

    def __init__(self, model: Model, template: str | None = None, context: int = 10_000) -> None:
        self.info = ModelInfo(
            vocabulary=260,
            context=context,
            chat_template=template,
            special_tokens={},
            sampling=Sampling(),
        )
        self.requests: list[GenerationRequest] = []
        self._model = model

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        for token, name in CONTROL.items():
            text = text.replace(name, chr(0xE000 + token))
        return [
            token
            for char in text
            for token in ([ord(char) - 0xE000] if ord(char) > 0xE000 else char.encode())
        ]

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        named = CONTROL if special else {}
        pieces = [
            named.get(token, "").encode() if token >= END else bytes([token]) for token in tokens
        ]
        return b"".join(pieces).decode(errors="replace")

    def control_text(self, token: int) -> str | None:
        return CONTROL.get(token)

    def ends_turn(self, token: int) -> bool:
        return token == END

    @property
    def grammars(self) -> Grammars:
        pieces = [bytes([token]) for token in range(END)] + [
            b"<end>",
            *map(str.encode, CONTROL.values()),
        ]
        return Grammars.of(pieces, [END, *CONTROL], [END], self.tokenize)

    def logits(self, tokens: Any) -> Iterator[Logits]:
        raise NotImplementedError

    def window(self, tokens: Sequence[int]) -> Logits:
        raise NotImplementedError

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[Logits, int]:
        self._rows = [list(prompt) for prompt in prompts]
        return self._next(), sum(map(len, prompts))

    def step(self, tokens: Sequence[int]) -> Logits:
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)
        return self._next()

    def retain(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[row] for row in rows]

    def _next(self) -> Logits:
        logits = np.full((len(self._rows), 260), -100, dtype=np.float32)
        for row, tokens in zip(logits, self._rows, strict=True):
            text = "".join(CONTROL.get(token, chr(token)) for token in tokens)
            for said, value in self._model(text).items():
                row[END if said == END_TEXT else self.tokenize(said)[0]] = value
        return logits

    def stream(self, requests: Sequence[GenerationRequest]) -> Generation:
        self.requests += requests
        return Generation(self, requests)

    def close(self) -> None:
        pass

    def __enter__(self) -> Book:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class SeeingBook(Book):
    """One that also sees: of a PNG its size, of anything else that it is none."""

    def __init__(self, model: Model, template: str | None = None) -> None:
        super().__init__(model, template)
        self.info = replace(self.info, sees=True)

    def see(self, image: bytes) -> list[int]:
        if not image.startswith(b"\x89PNG"):
            return self.tokenize("{other}")
        width, height = struct.unpack(">II", image[16:24])
        return self.tokenize(f"{{{width}x{height}}}")


def reciting(*texts: str, after: str = "|") -> Model:
    """A model that says one text after each prompt that ends in ``|``, one more sure the first."""

    def model(so_far: str) -> dict[str, float]:
        said = so_far.rpartition(after)[2]
        following = {}
        for sureness, text in zip(range(len(texts), 0, -1), texts, strict=True):
            if (text + END_TEXT).startswith(said) and len(said) <= len(text):
                rest = (text + END_TEXT)[len(said) :]
                tag = next((name for name in CONTROL.values() if rest.startswith(name)), rest[0])
                following.setdefault(tag, float(sureness))
        return following or {END_TEXT: 1.0}

    return model
