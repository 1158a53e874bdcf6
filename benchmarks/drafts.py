"""How many of a small model's tokens a large one keeps, and what reading them costs.

    python benchmarks/drafts.py tokens LARGE SMALL
    python benchmarks/drafts.py reading FILE.gguf...

`tokens`, of two GGUF files or two MLX directories: answers to held-out questions, greedy and
sampled, by the length of drafts and the least probability that the small model gives a token:
tokens for each step of the large model, and how many answers are those without drafts. `reading`:
CPU milliseconds until rows have read 1, 2, 3, 5 and 9 tokens each, in one thread; the least of the
rounds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import bitquilt.engines.drafting as drafting
from bitquilt.calibration import corpus
from bitquilt.engines import GenerationRequest, Sampling, open_engine
from bitquilt.engines.drafting import Drafter, Step, Verifier
from bitquilt.engines.generation import Generation
from bitquilt.engines.llamacpp_backend import LlamaCppBackend
from bitquilt.evaluation.traces import prompt_of, questions

QUESTIONS, LENGTH, ROUNDS = 8, 120, 6
SAMPLINGS = {
    "greedy": Sampling(),
    "sampled": Sampling(temperature=0.8, repetition_penalty=1.05, seed=7),
}
DRAFTS = ((4, 0.0), (4, 0.6), (8, 0.0), (8, 0.6), (16, 0.8))
READ, ROWS = (1, 2, 3, 5, 9), (1, 2, 4, 8)


class Always(Drafter):
    """Drafts for every step, whatever they cost."""

    def step(self, rows: int) -> AbstractContextManager[Step]:
        """See :class:`Drafter`."""
        return nullcontext(Step(drafted=True))


def answered(
    backend: Verifier, requests: Sequence[GenerationRequest], drafter: Drafter | None
) -> tuple[list[list[int]], int]:
    """The tokens of each answer, one after the other, and how many were drafted."""
    answers, drafted = [], 0
    for request in requests:
        pieces = [piece for _, piece in Generation(backend, [request], drafter)]
        answers.append([piece.token for piece in pieces])
        drafted += sum(piece.drafted for piece in pieces)
    return answers, drafted


def backend_of(path: str) -> Verifier:
    """A model in its engine."""
    if Path(path).is_file():
        return LlamaCppBackend(path, exact=False, threads=1)
    from bitquilt.engines.mlx_backend import MlxBackend

    return MlxBackend(path)


def tokens(large: str, small: str) -> None:
    """Print tokens for each step."""
    asked = questions(corpus.bundled("held-out"), QUESTIONS)
    with open_engine(large) as engine:
        prompts = [prompt_of(engine, question) for question in asked]
    backend, little = backend_of(large), backend_of(small)
    for name, sampling in SAMPLINGS.items():
        requests = [
            GenerationRequest(tokens=prompt, sampling=sampling, max_tokens=LENGTH)
            for prompt in prompts
        ]
        plain, _ = answered(backend, requests, None)
        for most, sure in DRAFTS:
            drafting.DRAFT_TOKENS, drafting.LEAST_SURE = most, sure
            answers, drafted = answered(backend, requests, Always(backend, little))
            said = sum(map(len, answers))
            same = sum(one == other for one, other in zip(answers, plain, strict=True))
            print(
                f"{name}, at most {most}, each at least {sure}: {said / (said - drafted):.2f} "
                f"tokens a step; {same} of {len(plain)} answers are those without drafts"
            )


def reading(file: str) -> None:
    """Print what reading costs."""
    backend = LlamaCppBackend(file, exact=False, threads=1)
    for rows in ROWS:
        backend.prefill([[*range(100, 164), row + 5] for row in range(rows)], 2000)
        costs = []
        for count in READ:
            taken = []
            for _ in range(ROUNDS):
                began = time.process_time()
                backend.verify([list(range(7, 7 + count))] * rows)
                taken.append(time.process_time() - began)
                backend.retract([count] * rows)
            costs.append(f"{min(taken) * 1e3:.1f}")
        print(f"{file}, {rows} rows, {READ} tokens each: {', '.join(costs)} ms of CPU time")


if __name__ == "__main__":
    if sys.argv[1] == "tokens":
        tokens(*sys.argv[2:])
    else:
        for path in sys.argv[2:]:
            reading(path)
