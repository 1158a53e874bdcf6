"""``bitquilt run``: ask a model one question, in the engine it is made for."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from bitquilt.cli.options import JSON, MODEL, print_json

if TYPE_CHECKING:
    from bitquilt.engines import Engine, Sampling


@click.command()
@MODEL
@click.argument("prompt")
@click.option("--max-tokens", type=click.IntRange(min=1), default=1024, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1))
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--raw", is_flag=True, help="Continue PROMPT as plain text, without chat template.")
@JSON
def run(
    model: str,
    prompt: str,
    max_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int,
    raw: bool,
    as_json: bool,
) -> None:
    """Ask MODEL a question and print the answer as it comes.

    MODEL is a GGUF file (run in llama.cpp), an MLX directory (mlx-lm), or anything that `quantize`
    takes (PyTorch). Settings not given are the model's own, or greedy decoding.
    """
    from bitquilt.engines import open_engine

    with open_engine(model) as engine:
        sampling = _settings(engine.info.sampling, temperature, top_p, seed)
        tokens = prompt_tokens(engine, prompt, raw)
        start = time.perf_counter()
        pieces = []
        for piece in engine.generate(tokens, sampling, max_tokens):
            pieces.append(piece)
            if not as_json:
                click.echo(piece, nl=False)
        seconds = time.perf_counter() - start
        answer = "".join(pieces)
        if not as_json:
            click.echo()
            return
        print_json(
            {
                "model": model,
                "prompt": prompt,
                "answer": answer,
                "prompt_tokens": len(tokens),
                "answer_tokens": len(engine.tokenize(answer)),
                "seconds": round(seconds, 3),
                "sampling": asdict(sampling),
            }
        )


def prompt_tokens(engine: Engine, prompt: str, raw: bool) -> list[int]:
    """A question as the model's chat template puts it, or plain text as its tokenizer takes it."""
    from bitquilt.talk.prompt import render

    if raw:
        return engine.tokenize(prompt, add_special=True)
    messages = [{"role": "user", "content": prompt}]
    text = render(engine.info.chat_template, messages, engine.info.special_tokens)
    return engine.tokenize(text)


def _settings(
    recommended: Sampling, temperature: float | None, top_p: float | None, seed: int
) -> Sampling:
    given = {"temperature": temperature, "top_p": top_p}
    stated: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(recommended, **stated, seed=seed)
