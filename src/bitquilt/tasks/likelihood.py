"""How likely a model finds a continuation: multiple-choice tasks are scored by it.

Letters: L tokens in a window, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitquilt.engines import Engine
from bitquilt.errors import UserError
from bitquilt.runtime.progress import Progress


@dataclass(frozen=True)
class Likelihood:
    """How likely one continuation is."""

    nats: float
    """log p(continuation | context)."""
    greedy: bool
    """Whether greedy decoding would give it."""


def encode_pair(engine: Engine, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Give the tokens of both, split where the context's own tokens end.

    Spaces between the two belong to the continuation, as lm-evaluation-harness has it: most
    tokenizers join a space with the word after it.
    """
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole = engine.tokenize(context + continuation, add_special=True)
    start = len(engine.tokenize(context, add_special=True))
    return whole[:start], whole[start:]


def likelihoods(
    engine: Engine, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], progress: Progress
) -> list[Likelihood]:
    """Give the likelihood of each continuation after its context, both as tokens.

    What is before the last token of a continuation is read once, whatever comes last: the four
    letters of a question with lettered answers cost one pass.

    Args:
        engine: the model.
        pairs: context (not empty) and continuation (not empty).
        progress: advances after each.

    Raises:
        UserError: a pair is longer than the model's context, or one of the two is empty; the
            model computes NaN or infinity.
    """
    read: dict[tuple[int, ...], list[int]] = {}
    for index, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            raise UserError("a likelihood needs a context and a continuation of a token at least")
        if len(context) + len(continuation) > engine.info.context + 1:
            raise UserError(
                f"an item of {len(context) + len(continuation):,} tokens is beyond the model's "
                f"context of {engine.info.context:,}; leave its task out"
            )
        read.setdefault((*context, *continuation[:-1]), []).append(index)
    found: dict[int, Likelihood] = {}
    for tokens, indices in read.items():
        (logits,) = engine.logits(np.array([tokens], dtype=np.int64))
        if not np.isfinite(logits.max()):
            raise engine.info.broken
        for index in indices:
            context, continuation = pairs[index]
            found[index] = _likelihood(logits[len(context) - 1 :], continuation)
            progress.advance()
    return [found[index] for index in range(len(pairs))]


def _likelihood(logits: NDArray[np.float32], tokens: Sequence[int]) -> Likelihood:
    """Score tokens by the logits [len(tokens), V] before each; in float64, as sums are long."""
    wide = logits.astype(np.float64)
    top = wide.max(1, keepdims=True)
    totals = np.log(np.exp(wide - top).sum(1)) + top[:, 0]
    chosen = wide[np.arange(len(tokens)), list(tokens)]
    return Likelihood(float((chosen - totals).sum()), bool((wide.argmax(1) == tokens).all()))


def rolling(
    engine: Engine, tokens: Sequence[int], first: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Cut a text into pairs that predict every token once, each with all the context there is.

    Args:
        engine: the model, whose context bounds a pair.
        tokens: the text.
        first: the token before it: the start token.
    """
    size = engine.info.context
    for start in range(0, len(tokens), size):
        part = list(tokens[start : start + size])
        before = [first] if start == 0 else list(tokens[max(0, start + len(part) - size) : start])
        yield (before or [tokens[start - 1]]), part
