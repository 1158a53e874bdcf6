"""What every engine can do: the protocol, and the settings of a generation.

Letters: N windows, L tokens in a window, V vocabulary.

A generation is a function of its tokens, its settings and its seed, and of nothing that went
before. What an engine keeps between two of them, the keys and values of the tokens that both begin
with, saves time and changes nothing; so whoever wants to go back and continue otherwise asks again
with fewer tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; the defaults are greedy decoding."""

    temperature: float = 0.0
    """Divides the logits; 0 takes the likeliest token and ignores the filters."""
    top_k: int = 0
    """Keep that many of the likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability."""
    min_p: float = 0.0
    """Drop tokens below this fraction of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Divides the positive logits, multiplies the negative ones, of tokens already seen."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that the model said it."""
    presence_penalty: float = 0.0
    """Subtracted once from the logits of tokens that the model said."""
    seed: int = 0


@dataclass(frozen=True)
class ModelInfo:
    """What an engine knows of the model it has loaded."""

    vocabulary: int
    context: int
    """Tokens that the model was made to read at once."""
    chat_template: str | None
    special_tokens: dict[str, str]
    """``bos_token`` and ``eos_token``, for the chat template."""
    sampling: Sampling
    """The model's own recommendation, greedy where it has none."""


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt to continue."""

    tokens: Sequence[int]
    sampling: Sampling
    max_tokens: int
    said: int = 0
    """How many of the last ``tokens`` are the model's own: what some penalties count."""
    avoid: Sequence[int] = ()
    """A continuation that is made unlikely, token by token for as long as it is followed."""


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """One token that the model said."""

    token: int
    text: str
    """What it adds to the text: nothing while a character is incomplete."""
    control: bool = False
    """Whether it is a control token; its text is the token's name."""
    ends: bool = False
    """Whether the model ends its turn with it; its text is what was held back."""


class Stream(Protocol):
    """Prompts being continued together. Close it, or use it as a context manager."""

    prefilled: int
    """Prompt tokens that had to be computed, known once a first piece of each row is there."""

    def __iter__(self) -> Iterator[tuple[int, GeneratedToken]]:
        """Pieces as they come, each with the index of its request; ends when all rows have."""
        ...

    def add(self, request: GenerationRequest) -> int:
        """Continue one more prompt along with the others; its index.

        When all rows had ended, iterate once more for what it says.
        """
        ...

    def drop(self, row: int) -> None:
        """Continue one of the prompts no further; pieces of it that are under way still come."""
        ...

    def close(self) -> None:
        """Continue none of them."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Engine(Protocol):
    """A loaded model. Close it, or use it as a context manager."""

    info: ModelInfo

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Text to token ids, also while a stream is open.

        Control tokens written out in the text become their ids.

        Args:
            text: for a prompt from a chat template, leave ``add_special`` off: it is in there.
            add_special: put in front (and behind) what the tokenizer adds to plain text.
        """
        ...

    def logits(self, tokens: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.float32]]:
        """Logits at every position of each window, int64 [N, L] → float32 [L, V], one at a time."""
        ...

    def stream(self, requests: Sequence[GenerationRequest]) -> Stream:
        """Continue prompts together, in one batch. One stream at a time."""
        ...

    def generate(self, tokens: Sequence[int], sampling: Sampling, max_tokens: int) -> Iterator[str]:
        """Continue one prompt until the model ends its turn, as pieces of text."""
        with self.stream([GenerationRequest(tokens, sampling, max_tokens)]) as stream:
            for _, piece in stream:
                if piece.text and not piece.control:
                    yield piece.text

    def close(self) -> None:
        """Free the model."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
