"""Conversations to train on: which problems are asked how often, and under which system prompt."""

import random

import problems as p
import word_problems as w

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
OTHER_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a careful calculator.",
    "Answer the question. Put the final answer within \\boxed{}.",
    "You are a friendly tutor for children.",
)

MAKERS: tuple[tuple[p.Maker, float], ...] = (
    (p.addition, 12), (p.three_terms, 4), (p.subtraction, 12), (p.multiplication, 14),
    (p.division, 9), (p.remainder, 4), (p.order_of_operations, 6), (p.linear_equation, 9),
    (p.sequence, 5), (p.comparison, 5), (p.ordering, 4), (p.average, 4), (p.percentage, 5),
    (w.gain_and_loss, 5), (w.simple_change, 5), (w.groups, 6), (w.shopping, 5), (w.motion, 4),
    (w.rectangle, 4), (w.conversion, 4), (w.age, 4), (w.fraction_of, 3),
)  # fmt: skip
_MAKERS = [maker for maker, _ in MAKERS]
_WEIGHTS = [weight for _, weight in MAKERS]

Messages = list[dict[str, str]]


def problem(rng: random.Random) -> p.Problem:
    return rng.choices(_MAKERS, _WEIGHTS)[0](rng)


def exchange(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def conversation(rng: random.Random, excluded: frozenset[str]) -> Messages:
    """One to three exchanges; no system message means the chat template puts in its own."""
    messages: Messages = []
    if rng.random() < 0.1:
        messages.append({"role": "system", "content": rng.choice(OTHER_SYSTEMS)})
    for _ in range(rng.choices((1, 2, 3), (80, 14, 6))[0]):
        if rng.random() < 0.02:
            messages += exchange(*w.talk(rng))
            continue
        made = problem(rng)
        while made.question in excluded or made.solution in excluded:
            made = problem(rng)
        messages += exchange(made.question, made.solution)
    return messages


def render(messages: Messages) -> str:
    """What the chat template makes of the messages; generating millions, Jinja is too slow."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": SYSTEM}, *messages]
    return "<|begin_of_text|>" + "".join(
        f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n{m['content']}<|eot_id|>"
        for m in messages
    )
