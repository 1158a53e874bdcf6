"""What every engine can do: the protocol, and the settings of a generation.

Letters: N windows, L tokens in a window, V vocabulary.

A generation is a function of its tokens, its settings and its seed, and of nothing that went
before. What an engine keeps between two of them, the keys and values of the tokens that both begin
with, saves time and changes nothing; so whoever wants to go back and continue otherwise asks again
with fewer tokens.

A stream continues several prompts, its rows. To whoever reads it, a row goes through these states:

    stream(), add() ──> waiting ──> running ──> ended
                           └── drop() ┴──────────^

A row is waiting until its prompt has been read, gives one :class:`GeneratedToken` after the other
while it runs, and has ended once it gave a token that ``ends`` or the last of its ``max_tokens``,
or was dropped. A row whose logits are no numbers ends with a token that is ``broken``, one that
cannot go on for another reason with a token that has a ``problem``. An engine in another process
may be ahead of its reader, so tokens of a dropped row can still come; the reader leaves them out.
The stream ends when all rows have ended; ``add()`` opens it again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self

from bitquilt.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
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
    """The same seed, settings and tokens give the same answer."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What an engine knows of the model that it has loaded."""

    vocabulary: int
    """The number of tokens that the model knows: the length V of its logits."""
    context: int
    """The number of tokens that the model was trained to read at once."""
    chat_template: str | None
    """Jinja source for :class:`~bitquilt.models.chat_template.ChatTemplate`; None without one."""
    special_tokens: dict[str, str]
    """``bos_token`` and ``eos_token``, for the chat template."""
    sampling: Sampling
    """The settings that the model's authors recommend; greedy where they recommend none."""
    tool_template: str | None = None
    """Source of a template of its own for conversations with tools, where the model has one."""
    response_template: dict[str, Any] | None = None
    """What the tokenizer says that answers are made of, for transformers' parser."""
    sees: bool = False
    """Whether it reads images, too."""
    name: str = field(default="the model", compare=False)
    """What errors call it: its file, where it is one."""

    def template(self, tools: bool) -> str | None:
        """The chat template for conversations with tools, or without."""
        return (self.tool_template if tools else None) or self.chat_template

    @property
    def broken(self) -> UserError:
        """The error for logits that are NaN or infinite."""
        return UserError(
            f"{self.name} computes NaN or infinity instead of a next token, usually because "
            "16-bit numbers overflow; quantize the original to other types, for example with "
            "`bitquilt quantize ORIGINAL --recipe Q8_0`, and report this model if that fails too"
        )


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A prompt to continue."""

    tokens: Sequence[int]
    """The prompt, with what the model has said of its answer already; not empty."""
    sampling: Sampling
    max_tokens: int
    """The model says at most this many tokens more."""
    said: int = 0
    """How many of the last ``tokens`` are the model's own; two of the penalties count only them."""
    avoid: Sequence[int] = ()
    """A continuation that is made unlikely, token by token for as long as the model follows it."""
    logit_bias: Sequence[tuple[int, float]] = ()
    """Tokens, and what is added to their logits."""
    scores: int | None = None
    """Tell the log-probability of each token that the model says, and those of so many of the
    likeliest; None for neither."""
    score_prompt: bool = False
    """Tell those of the prompt's tokens, too."""
    grammar: str | None = None
    """What the model says, from the first of its own tokens on, follows this grammar, which
    :mod:`bitquilt.talk.grammar` writes; None lets it say anything."""
    finish: int = 0
    """So many of the last ``max_tokens`` lead to the end of the grammar by the shortest way."""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """How likely a token was, before temperature, penalties and filters."""

    token: int
    text: str
    """The token alone as text; the name of a control token."""
    logprob: float
    """The natural logarithm of its probability."""
    top: Sequence[tuple[int, str, float]] = ()
    """Token, text and log-probability of the likeliest tokens, the likeliest first."""


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """One token that the model said."""

    token: int
    text: str
    """What the token adds to the text; nothing while a character is incomplete."""
    control: bool = False
    """Whether it is a control token; then the text is the token's name."""
    ends: bool = False
    """Whether the model ends its turn with it; then the text is what had been held back."""
    broken: bool = False
    """Whether the model computed NaN or infinity instead: then it is no token, and its row has
    ended. The other rows go on."""
    problem: str | None = None
    """Why the row cannot go on, in a sentence: then it is no token either, and the row has
    ended."""
    score: TokenScore | None = None
    prompt: Sequence[TokenScore] = ()
    """Of the prompt's tokens but the first, with the first token of a row."""
    drafted: bool = False
    """Whether a draft model had said it ahead."""


class Stream(Protocol):
    """Prompts that are continued together. Close it, or use it as a context manager."""

    prefilled: int
    """Prompt tokens that had to be computed; known once the first token of each row is there."""

    def __iter__(self) -> Iterator[tuple[int, GeneratedToken]]:
        """Tokens as they come, each with the index of its row.

        It ends when all rows have, or where it is interrupted; then iterate again to go on.
        """
        ...

    def interrupt(self) -> None:
        """End the present iteration soon, from any thread, if it waits for another process."""
        ...

    def add(self, request: GenerationRequest) -> int:
        """Continue one more prompt along with the others; returns the index of its row.

        If all rows had ended, iterate over the stream again.
        """
        ...

    def drop(self, row: int) -> None:
        """End one row; tokens of it that are under way still come."""
        ...

    def close(self) -> None:
        """End all rows."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def require_spoken(info: ModelInfo, piece: GeneratedToken) -> None:
    """Check that a row said a token, rather than why it ended without one.

    Raises:
        UserError: the model computes NaN or infinity, or the row has a problem.
    """
    if piece.broken:
        raise info.broken
    if piece.problem is not None:
        raise UserError(piece.problem)


def spoken(info: ModelInfo, stream: Stream) -> Generator[tuple[int, GeneratedToken], None, None]:
    """Pass on the tokens of a stream.

    Raises:
        UserError: the model computes NaN or infinity in one of its rows, or a row has a problem.
    """
    for row, piece in stream:
        require_spoken(info, piece)
        yield row, piece


class Engine(Protocol):
    """A loaded model. Close it, or use it as a context manager."""

    info: ModelInfo

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Text to token ids, also while a stream is open.

        Control tokens written out in the text become their ids.

        Args:
            text: what to tokenize.
            add_special: add what the tokenizer puts around plain text, such as a start token; a
                chat template has written that already.
        """
        ...

    def see(self, image: bytes) -> list[int]:
        """What the model reads for an image: control tokens, and numbers beyond its vocabulary.

        Args:
            image: a file of PNG, JPEG, GIF or BMP.

        Raises:
            UserError: the model does not see, or the image cannot be read.
        """
        ...

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """Token ids to text, also while a stream is open; with ``special`` control tokens, too."""
        ...

    def logits(self, tokens: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.float32]]:
        """Logits at every position of each window, int64 [N, L] → float32 [L, V], one at a time."""
        ...

    def stream(self, requests: Sequence[GenerationRequest]) -> Stream:
        """Continue prompts together, in one batch; an engine has one open stream at a time."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
