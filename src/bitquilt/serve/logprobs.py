"""Log-probabilities in the two forms of OpenAI's API: of chat, and of plain completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitquilt.engines import TokenScore


def chat_logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    """``logprobs`` of a choice of ``/v1/chat/completions``."""
    return {"content": [_entry(score) for score in scores]}


def _entry(score: TokenScore) -> dict[str, Any]:
    top = [_likely(text, logprob) for _, text, logprob in score.top]
    return {**_likely(score.text, score.logprob), "top_logprobs": top}


def _likely(text: str, logprob: float) -> dict[str, Any]:
    said: dict[str, Any] = {"token": text, "logprob": logprob}
    if "\ufffd" not in text:  # else the token is a part of a character, whose bytes are not known
        said["bytes"] = list(text.encode())
    return said


def text_logprobs(
    scores: Sequence[TokenScore], offset: int, first: str | None = None
) -> dict[str, Any]:
    """``logprobs`` of a choice of ``/v1/completions``.

    Args:
        scores: of its tokens.
        offset: the number of characters before the first of them.
        first: the text of a token before them, which nothing predicted; None without one.
    """
    texts = [] if first is None else [first]
    unknown = [None] * len(texts)
    texts += [score.text for score in scores]
    offsets = [offset + sum(map(len, texts[:at])) for at in range(len(texts))]
    return {
        "tokens": texts,
        "token_logprobs": [*unknown, *(score.logprob for score in scores)],
        "top_logprobs": [*unknown, *map(_top, scores)],
        "text_offset": offsets,
    }


def _top(score: TokenScore) -> dict[str, float]:
    """The likeliest tokens and the token itself; of equal texts, the likelier."""
    found = {score.text: score.logprob}
    for _, text, logprob in reversed(score.top):
        found[text] = max(logprob, found.get(text, logprob))
    return found
