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
from bitquilt.engines import Engine, Request, Sampling
from bitquilt.evaluation.text import Text
from bitquilt.progress import Step
from bitquilt.talk.prompt import render

DOMAIN = "traces"
TRACES = 64
TRACE_TOKENS = 256
"""Of one answer, at most."""
BATCH = 64


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
    info = engine.info
    chats = ([{"role": "user", "content": question}] for question in asked)
    prompts = [
        engine.tokenize(render(info.chat_template, chat, info.special_tokens)) for chat in chats
    ]
    requests = [
        Request(prompt, Sampling(temperature=1.0, seed=seed), TRACE_TOKENS)
        for seed, prompt in enumerate(prompts)
    ]
    answers: list[list[int]] = []
    for start in range(0, len(requests), BATCH):
        batch = requests[start : start + BATCH]
        said: list[list[int]] = [[] for _ in batch]
        with engine.stream(batch) as stream:
            for row, piece in stream:
                said[row].append(piece.token)
                if piece.ends or len(said[row]) == TRACE_TOKENS:
                    step()
        answers += said
    return _text(prompts, answers)


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
