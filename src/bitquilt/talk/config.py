"""What an answer can be asked for; cheap to import, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bitquilt.errors import KEYWORDS
from bitquilt.runtime.compute import threads_option
from bitquilt.runtime.options import Options, option

ANSWER_TOKENS = 4096
"""An answer has at most this many tokens, wherever nothing else is said."""


def draft_option() -> Any:
    """Make the field ``draft`` of a config whose command runs a model."""
    return option(
        "This smaller model writes a few tokens ahead, and MODEL keeps those that it would have "
        "said itself: the answer is MODEL's own, and may come sooner. Both are GGUF files or both "
        "MLX directories, with the same tokens; `bitquilt pair` measures how much faster the two "
        "are.",
        default=None,
        metavar="PATH",
    )


@dataclass(frozen=True, kw_only=True)
class AnswerConfig(Options):
    """How a model answers; sampling settings that are None are the model's own."""

    system: str | None = option(
        'The system prompt is this text, "" for none, or the name of a known one: `boxed` is '
        "MobileLLM-R1's for problems with one answer, `magistral` is Magistral's.  "
        "[default: what the chat template puts in]",
        default=None,
        metavar="TEXT|NAME",
        empty=True,
    )
    hide_thinking: bool = option("The answer is shown without the reasoning.", default=False)
    temperature: float | None = option(
        "The logits are divided by this; 0 is greedy decoding.", default=None, metavar="X", least=0
    )
    top_p: float | None = option(
        "Tokens are drawn from the likeliest ones that together reach this probability.",
        default=None,
        metavar="X",
        least=0,
        most=1,
    )
    top_k: int | None = option(
        "Tokens are drawn from this many of the likeliest ones; 0 keeps all.",
        default=None,
        metavar="N",
        least=0,
    )
    min_p: float | None = option(
        "Tokens that are less likely than this fraction of the likeliest one are dropped.",
        default=None,
        metavar="X",
        least=0,
        most=1,
    )
    repetition_penalty: float | None = option(
        "Tokens of the prompt and the answer become less likely by this factor; 1 does nothing.",
        default=None,
        metavar="X",
        above=0,
    )
    frequency_penalty: float | None = option(
        "This is subtracted from a token's logit each time that the model has said the token.",
        default=None,
        metavar="X",
    )
    presence_penalty: float | None = option(
        "This is subtracted once from the logits of all tokens that the model has said.",
        default=None,
        metavar="X",
    )
    seed: int = option(
        "The same seed and settings give the same answer.", default=0, metavar="N", least=0
    )
    max_tokens: int = option(
        "An answer has at most this many tokens, reasoning included.",
        default=ANSWER_TOKENS,
        metavar="N",
        least=1,
    )
    think_budget: int | None = option(
        "The reasoning is closed after this many tokens, so that the model answers.",
        default=None,
        metavar="N",
        least=0,
    )
    stop: Sequence[str] = option(
        "The answer ends before this text; the option can be repeated.",
        default=(),
        metavar="TEXT",
        many=True,
        repeated=True,
    )
    threads: int | None = threads_option()


@dataclass(frozen=True, kw_only=True)
class RunConfig(AnswerConfig):
    """What ``bitquilt run`` can be asked for: an answer, and what is printed of it."""

    image: Sequence[str] = option(
        "The model sees this image (PNG, JPEG, GIF or BMP) before the question; the option can be "
        "repeated. MODEL must be a GGUF file with its vision tower, mmproj-NAME.gguf, beside it.",
        default=(),
        metavar="FILE",
        many=True,
        repeated=True,
    )
    draft: str | None = draft_option()
    no_chat_template: bool = option(
        "PROMPT is continued as plain text, without the chat template.", default=False
    )
    final_only: bool = option(
        "Only the result in the answer's last \\boxed{} is printed. If there is none, the exit "
        "code is 3.",
        default=False,
    )
    votes: int | None = option(
        "K answers are sampled at once, and the most frequent result in \\boxed{} is printed. If "
        "there is no \\boxed{} in any of them, the most frequent last line is printed.",
        default=None,
        metavar="K",
        least=2,
    )


KEYWORDS["--no-chat-template"] = "bitquilt.talk.plain"  # from Python, a function does it
