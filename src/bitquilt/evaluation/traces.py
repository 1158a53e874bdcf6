"""Reasoning traces that the original writes itself: what a thinking model spends its tokens on.

They are drawn at temperature 1 and from the whole vocabulary, so that the mean divergence on them
times their length is the divergence between whole answers: KL of sequences is the expectation,
under the original, of the sum over tokens.

Letters: N traces, L tokens in the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitquilt.calibration.corpus import Document
from bitquilt.engines import Engine, Piece, Request, Sampling
from bitquilt.evaluation.text import Text
from bitquilt.progress import Step
from bitquilt.talk.prompt import render

DOMAIN = "traces"
TRACES = 32
TRACE_TOKENS = 256
"""Of one answer, at most."""
BATCH = 32
SHOWN = 4
"""Questions whose answers are shown to people, side by side."""


def questions(documents: Sequence[Document], count: int = TRACES) -> list[str]:
    """What users ask in the documents' conversations, spread over all of them."""
    asked = [
        message["content"]
        for document in documents
        for message in (document.messages or ())
        if message["role"] == "user"
    ]
    return asked[:: max(1, len(asked) // count)][:count]


def write(engine: Engine, asked: Sequence[str], step: Step) -> Text:
    """A model's answers to the questions, seeded; only what it wrote is judged.

    Args:
        engine: has a chat template.
        asked: questions.
        step: called after each of ``len(asked)`` answers.
    """
    prompts = _prompts(engine, asked)
    answers = [
        [piece.token for piece in answer]
        for answer in _answered(engine, prompts, temperature=1.0, step=step)
    ]
    return _text(prompts, answers)


def greedy(engine: Engine, asked: Sequence[str], step: Step) -> list[str]:
    """The likeliest answers to the questions, as text."""
    answered = _answered(engine, _prompts(engine, asked), temperature=0.0, step=step)
    return ["".join(piece.text for piece in answer if not piece.control) for answer in answered]


def _prompts(engine: Engine, asked: Sequence[str]) -> list[list[int]]:
    info = engine.info
    chats = ([{"role": "user", "content": question}] for question in asked)
    return [engine.tokenize(render(info.chat_template, c, info.special_tokens)) for c in chats]


def _answered(
    engine: Engine, prompts: Sequence[list[int]], *, temperature: float, step: Step
) -> list[list[Piece]]:
    """What the model says to each prompt, in batches; the seed is the prompt's number."""
    requests = [
        Request(prompt, Sampling(temperature=temperature, seed=seed), TRACE_TOKENS)
        for seed, prompt in enumerate(prompts)
    ]
    answers: list[list[Piece]] = [[] for _ in requests]
    for start in range(0, len(requests), BATCH):
        with engine.stream(requests[start : start + BATCH]) as stream:
            for row, piece in stream:
                answer = answers[start + row]
                answer.append(piece)
                if piece.ends or len(answer) == TRACE_TOKENS:
                    step()
    return answers


def _text(prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Text:
    """One window a trace, as long as the longest; what follows a shorter one is not judged."""
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    tokens = np.zeros((len(prompts), length), np.int64)
    judged = np.zeros((len(prompts), length), bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[row, :end] = prompt + answer
        judged[row, len(prompt) : end] = True
    return text_of(torch.from_numpy(tokens), judged[:, 1:])


def text_of(tokens: Tensor, judged: NDArray[np.bool_]) -> Text:
    """Traces as a text: every window [N, L] is a document of its own."""
    count, length = tokens.shape
    document = np.repeat(np.arange(count)[:, None], length - 1, axis=1)
    return Text(tokens, judged, document, (DOMAIN,) * count)
