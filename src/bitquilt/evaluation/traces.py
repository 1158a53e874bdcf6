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
from bitquilt.engines import Engine, GeneratedToken, GenerationRequest, Sampling, spoken
from bitquilt.evaluation.config import TraceConfig
from bitquilt.evaluation.text import Text
from bitquilt.runtime.progress import Progress
from bitquilt.talk.prompt import render_prompt

DOMAIN = "traces"
ROWS = 36
"""Answers that are written at once."""


def questions(documents: Sequence[Document], count: int) -> list[str]:
    """Give what users ask in the documents' conversations, ``count`` spread over all of them."""
    asked = [
        message["content"]
        for document in documents
        for message in (document.messages or ())
        if message["role"] == "user"
    ]
    return [asked[i * len(asked) // count] for i in range(count)] if len(asked) > count else asked


def write_traces(
    engine: Engine,
    asked: Sequence[str],
    shown: Sequence[str],
    config: TraceConfig,
    progress: Progress,
) -> tuple[Text, list[str]]:
    """Let a model answer at temperature 1, seeded, and give its likeliest answers.

    Args:
        engine: has a chat template.
        asked: questions to answer at random; only what the model wrote is scored.
        shown: questions to answer greedily, as text; in the same batch, for a step of few rows
            takes as long as one of many.
        config: how long answers may be.
        progress: advances after each answer.
    """
    prompts = _prompts(engine, asked)
    requests = _drawn(prompts, config.tokens) + _likeliest(_prompts(engine, shown), config.tokens)
    answers = _answered(engine, requests, progress)
    own = [[piece.token for piece in answer] for answer in answers[: len(asked)]]
    return _text(prompts, own), [_said(answer) for answer in answers[len(asked) :]]


def greedy_answers(
    engine: Engine, asked: Sequence[str], config: TraceConfig, progress: Progress
) -> list[str]:
    """Give a model's likeliest answers to the questions, as text."""
    requests = _likeliest(_prompts(engine, asked), config.tokens)
    return [_said(answer) for answer in _answered(engine, requests, progress)]


def _drawn(prompts: Sequence[list[int]], tokens: int) -> list[GenerationRequest]:
    """Ask at temperature 1; the seed is the prompt's number."""
    return [
        GenerationRequest(
            tokens=prompt, sampling=Sampling(temperature=1.0, seed=seed), max_tokens=tokens
        )
        for seed, prompt in enumerate(prompts)
    ]


def _likeliest(prompts: Sequence[list[int]], tokens: int) -> list[GenerationRequest]:
    return [
        GenerationRequest(tokens=prompt, sampling=Sampling(temperature=0.0), max_tokens=tokens)
        for prompt in prompts
    ]


def _said(answer: Sequence[GeneratedToken]) -> str:
    return "".join(piece.text for piece in answer if not piece.control)


def _prompts(engine: Engine, asked: Sequence[str]) -> list[list[int]]:
    info = engine.info
    chats = ([{"role": "user", "content": question}] for question in asked)
    return [
        engine.tokenize(render_prompt(info.chat_template, c, info.special_tokens)) for c in chats
    ]


def _answered(
    engine: Engine, requests: Sequence[GenerationRequest], progress: Progress
) -> list[list[GeneratedToken]]:
    """What the model says to each, in batches."""
    answers: list[list[GeneratedToken]] = [[] for _ in requests]
    for start in range(0, len(requests), ROWS):
        with engine.stream(requests[start : start + ROWS]) as stream:
            for row, piece in spoken(engine.info, stream):
                answer = answers[start + row]
                answer.append(piece)
                if piece.ends or len(answer) == requests[start + row].max_tokens:
                    progress.advance()
    return answers


def _text(prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Text:
    """One window a trace, as long as the longest; what follows a shorter one is not scored."""
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    tokens = np.zeros((len(prompts), length), np.int64)
    scored = np.zeros((len(prompts), length), bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[row, :end] = prompt + answer
        scored[row, len(prompt) : end] = True
    return text_of(torch.from_numpy(tokens), scored[:, 1:])


def text_of(tokens: Tensor, scored: NDArray[np.bool_]) -> Text:
    """Traces as a text: every window [N, L] is a document of its own."""
    count, length = tokens.shape
    document = np.repeat(np.arange(count)[:, None], length - 1, axis=1)
    return Text(tokens, scored, document, (DOMAIN,) * count)
