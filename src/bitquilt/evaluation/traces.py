"""Answers that the original writes itself: reasoning traces, if it is a model that reasons.

They are drawn at temperature 1 and from the whole vocabulary, so that the mean divergence on them
times their length is the divergence between whole answers: KL of sequences is the expectation,
under the original, of the sum over tokens.

Letters: N answers, L tokens in the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitquilt.calibration.corpus import Document
from bitquilt.engines import Engine, GeneratedToken, GenerationRequest, ModelInfo, Sampling, spoken
from bitquilt.engines.tokenizer import HubTokenizer
from bitquilt.evaluation.text import Text
from bitquilt.talk.prompt import render_prompt
from bitquilt.talk.reasoning import PLAIN, style_of

TRACES, ANSWERS = "traces", "answers"
"""What answers are called: those of a model that reasons, and others."""
ROWS = 12
"""Answers that are written at once; a run that is stopped loses those. Three times as many would
take two thirds of the time for each."""


@dataclass(frozen=True)
class WrittenAnswer:
    """What a model said to one question."""

    tokens: list[int]
    text: str


def questions(documents: Sequence[Document], count: int) -> list[str]:
    """Give what the documents' conversations begin with, ``count`` spread over all of them.

    What is said later, or after a system message, is no question by itself.
    """
    asked = [
        document.messages[0]["content"]
        for document in documents
        if document.messages and document.messages[0]["role"] == "user"
    ]
    return [asked[i * len(asked) // count] for i in range(count)] if len(asked) > count else asked


def prompt_of(model: Engine | HubTokenizer, question: str) -> list[int]:
    """Give the prompt of a question, by the model's chat template."""
    return model.tokenize(_rendered(model.info, question), add_special=False)


def _rendered(info: ModelInfo, question: str) -> str:
    message = {"role": "user", "content": question}
    return render_prompt(info.chat_template, [message], info.special_tokens)


def domain_of(info: ModelInfo, question: str) -> str:
    """Tell what a model's answers are called: ``traces`` where it reasons, else ``answers``."""
    style = style_of(info.chat_template, _rendered(info, question))
    return ANSWERS if style == PLAIN else TRACES


def at_random(tokens: list[int], seed: int, length: int) -> GenerationRequest:
    """Ask for an answer at temperature 1."""
    return GenerationRequest(
        tokens=tokens, sampling=Sampling(temperature=1.0, seed=seed), max_tokens=length
    )


def likeliest(tokens: list[int], length: int) -> GenerationRequest:
    """Ask for the greedy answer."""
    return GenerationRequest(tokens=tokens, sampling=Sampling(temperature=0.0), max_tokens=length)


def write_answers(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    done: Callable[[int, WrittenAnswer], None],
    advance: Callable[[int], None],
) -> None:
    """Let a model answer, a few requests at once.

    Args:
        engine: the model.
        requests: the prompts, and how they are answered.
        done: is told the number of each request and its answer, as soon as it is complete.
        advance: is told of tokens: one by one, and of those that an answer need not have.
    """
    for start in range(0, len(requests), ROWS):
        batch = requests[start : start + ROWS]
        said: list[list[GeneratedToken]] = [[] for _ in batch]
        with engine.stream(batch) as stream:
            for row, piece in spoken(engine.info, stream):
                said[row].append(piece)
                advance(1)
                left = batch[row].max_tokens - len(said[row])
                if piece.ends or left == 0:
                    advance(left)
                    done(start + row, _whole(said[row]))


def _whole(pieces: Sequence[GeneratedToken]) -> WrittenAnswer:
    text = "".join(piece.text for piece in pieces if not piece.control)
    return WrittenAnswer([piece.token for piece in pieces], text)


def as_text(prompts: Sequence[list[int]], answers: Sequence[list[int]], domain: str) -> Text:
    """Answers as a text: each is a window and a document of its own, as long as the longest.

    Only what the model wrote is scored: neither the prompt, nor what follows a shorter answer.
    """
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    tokens = np.zeros((len(prompts), length), np.int64)
    scored = np.zeros((len(prompts), length), bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[row, :end] = prompt + answer
        scored[row, len(prompt) : end] = True
    document = np.repeat(np.arange(len(prompts))[:, None], length - 1, axis=1)
    of_tokens: Tensor = torch.from_numpy(tokens)
    return Text(of_tokens, scored[:, 1:], document, (domain,) * len(prompts))
