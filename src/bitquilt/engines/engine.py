"""What every engine can do: the protocol, and the settings of a generation.

Letters: N windows, L tokens in a window, V vocabulary.
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
    """Divides the logits; 0 takes the likeliest token and ignores all the rest."""
    top_k: int = 0
    """Keep that many of the likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability."""
    min_p: float = 0.0
    """Drop tokens below this fraction of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Divides the positive logits, multiplies the negative ones, of tokens already seen."""
    seed: int = 0


@dataclass(frozen=True)
class ModelInfo:
    """What an engine knows of the model it has loaded."""

    vocabulary: int
    chat_template: str | None
    special_tokens: dict[str, str]
    """``bos_token`` and ``eos_token``, for the chat template."""
    sampling: Sampling
    """The model's own recommendation, greedy where it has none."""


class Engine(Protocol):
    """A loaded model. Close it, or use it as a context manager."""

    @property
    def info(self) -> ModelInfo:
        """Vocabulary size, chat template and sampling defaults of the model."""
        ...

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Text to token ids; control tokens written out in the text become their ids.

        Args:
            text: for a prompt from a chat template, leave ``add_special`` off: it is in there.
            add_special: put in front (and behind) what the tokenizer adds to plain text.
        """
        ...

    def logits(self, tokens: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.float32]]:
        """Logits at every position of each window, int64 [N, L] → float32 [L, V], one at a time."""
        ...

    def generate(self, tokens: Sequence[int], sampling: Sampling, max_tokens: int) -> Iterator[str]:
        """Continue a prompt until the model ends its turn, as pieces of text."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
