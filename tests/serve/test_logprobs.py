"""Log-probabilities, echoes and biases over HTTP, against those of the engine's own logits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitquilt.engines import open_engine
from bitquilt.engines.backend import Logits
from tests.serve.conftest import Running, post, running
from tests.talk.book import Book, reciting

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}|"
USER: Any = [{"role": "user", "content": "hi"}]


class Readable(Book):
    """A book whose pages can be read for their probabilities."""

    def read(self, tokens: Sequence[int]) -> Iterator[Logits]:
        for end in range(1, len(tokens) + 1):
            self._rows = [list(tokens[:end])]
            yield self._next()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(lambda: Readable(reciting("Yes", "No"), TEMPLATE)) as found:
        yield found


def completed(server: Running, **fields: Any) -> dict[str, Any]:
    status, said = post(server, json.dumps(fields).encode(), "/v1/completions")
    assert status == 200, said
    return said


def test_chat_tells_the_likeliest(server: Running) -> None:
    create = server.client.chat.completions.create
    ask: Any = {"model": "model", "messages": USER, "logprobs": True, "top_logprobs": 2}
    (choice,) = create(**ask).choices
    content = choice.logprobs.content
    assert [one.token for one in content] == ["Y", "e", "s"]
    first = content[0]
    assert [one.token for one in first.top_logprobs] == ["Y", "N"]
    assert first.logprob == first.top_logprobs[0].logprob == pytest.approx(-math.log1p(math.e**-1))
    assert first.bytes == [ord("Y")]
    chunks = create(**ask, stream=True)
    parts = [c.choices[0].logprobs.content for c in chunks if c.choices[0].logprobs]
    assert [one for part in parts for one in part] == content


def test_without_asking_there_are_none(server: Running) -> None:
    assert "logprobs" not in json.dumps(post(server, json.dumps({"messages": USER}).encode())[1])


def test_plain_text_in_its_own_form(server: Running) -> None:
    (choice,) = completed(server, prompt="a|", logprobs=1)["choices"]
    assert choice["logprobs"]["tokens"] == ["Y", "e", "s"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]
    assert [list(top) for top in choice["logprobs"]["top_logprobs"]] == [["Y"], ["e"], ["s"]]


def test_an_echo(server: Running) -> None:
    two = completed(server, prompt=["a|", "b|"], echo=True)["choices"]
    assert [choice["text"] for choice in two] == ["a|Yes", "b|Yes"]
    (ids,) = completed(server, prompt=[97, 124], echo=True)["choices"]
    assert ids["text"] == "a|Yes"
    stream = server.client.completions.create(model="model", prompt="a|", echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "a|Yes"


@pytest.mark.parametrize("most", [0, 1])
def test_a_prompt_is_scored(server: Running, most: int) -> None:
    """As lm-evaluation-harness does for questions with several choices."""
    (choice,) = completed(server, prompt="a|Ye", echo=True, logprobs=1, max_tokens=most)["choices"]
    assert choice["text"] == "a|Ye" + "s" * most
    told = choice["logprobs"]
    assert told["tokens"] == list("a|Ye" + "s" * most)
    assert told["token_logprobs"][0] is None
    assert told["top_logprobs"][0] is None
    assert told["token_logprobs"][2] == pytest.approx(-math.log1p(math.e**-1))
    assert told["top_logprobs"][2] == {"Y": told["token_logprobs"][2]}
    assert told["token_logprobs"][1] < -50  # nobody would say "|"
    assert "|" in told["top_logprobs"][1]
    assert len(told["top_logprobs"][1]) == 2
    assert told["text_offset"] == list(range(4 + most))


def test_nothing_is_said_where_nothing_is_asked_for(server: Running) -> None:
    said = completed(server, prompt="a|", max_tokens=0)
    assert said["choices"] == [{"index": 0, "text": "", "finish_reason": "length"}]
    assert said["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("bias", [{"89": -100}, {89: -2.5}, [[89, -100]], [[89, False]]])
def test_a_bias_changes_the_answer(server: Running, bias: Any) -> None:
    assert completed(server, prompt="a|", logit_bias=bias)["choices"][0]["text"] == "No"


@pytest.mark.parametrize("bias", [{"260": 1}, {"-1": 1}, {"word": 1}, [[1]], [1], 5, {"1": "x"}])
def test_a_bias_that_is_none(server: Running, bias: Any) -> None:
    body = json.dumps({"prompt": "a|", "logit_bias": bias}).encode()
    status, said = post(server, body, "/v1/completions")
    assert status == 400
    assert "logit_bias" in said["error"]["message"]


def test_as_the_engine_computes_them(demo: Running, demo_gguf: Path) -> None:
    prompt = "What is 2 + 2? It is "
    (choice,) = completed(demo, prompt=prompt, echo=True, logprobs=3, max_tokens=2, temperature=0)[
        "choices"
    ]
    told = choice["logprobs"]
    with open_engine(demo_gguf) as engine:
        tokens = engine.tokenize(prompt, add_special=True)
        (logits,) = engine.logits(np.array([tokens]))
    highest = logits.max(1, keepdims=True)
    meant = logits - highest - np.log(np.exp(logits - highest).sum(1, keepdims=True))
    assert "".join(told["tokens"]) == choice["text"]
    # the start token is none of the text, and predicts the first that is
    assert len(told["tokens"]) == len(tokens) - 1 + 2
    found = told["token_logprobs"][: len(tokens) - 1]
    assert found == pytest.approx(meant[range(len(tokens) - 1), tokens[1:]].tolist(), abs=0.02)
    likeliest = max(told["top_logprobs"][3].values())
    assert likeliest == pytest.approx(float(meant[3].max()), abs=0.02)


def test_a_start_token_is_read_once(demo: Running) -> None:
    """It may be written out, be among the ids, or be unwanted; the tokenizer's own is not told."""
    info, text = demo.scheduler.info, "What is 2 + 2?"
    start = info.special_tokens["bos_token"]

    def told(prompt: Any, **fields: Any) -> tuple[list[str], list[float | None], int]:
        said = completed(demo, prompt=prompt, echo=True, logprobs=0, max_tokens=0, **fields)
        scores = said["choices"][0]["logprobs"]
        return scores["tokens"], scores["token_logprobs"], said["usage"]["prompt_tokens"]

    tokens, scores, count = told(text)
    assert "".join(tokens) == text
    assert None not in scores
    assert count == len(tokens) + 1
    _, ids = post(demo, json.dumps({"prompt": text}).encode(), "/tokenize")
    for prompt in (start + text, ids["tokens"]):
        assert told(prompt) == ([start, *tokens], [None, *scores], count)
    bare, unknown, _ = told(text, add_special_tokens=False)
    assert bare == tokens
    assert unknown[0] is None


def test_scoring_a_prompt_does_not_disturb_the_others(demo: Running) -> None:
    ask: Any = {"model": "demo", "messages": [{"role": "user", "content": "What is 347 + 585?"}]}
    stream = demo.client.chat.completions.create(**ask, temperature=0, stream=True)
    next(stream)
    completed(demo, prompt="one two three", echo=True, logprobs=1, max_tokens=0)
    assert list(stream)[-1].bitquilt["final"] == "932"
