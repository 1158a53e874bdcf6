"""Images reach a model that sees, in every dialect, as they are given to the engine."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

from bitquilt.engines.llamacpp import open_llamacpp
from bitquilt.serve.app import LEAST_BYTES
from tests.bases.models import needs_converter
from tests.magistral import seeing_files
from tests.png import colours, png
from tests.serve.conftest import Running, post, running

pytestmark = needs_converter
ONE, OTHER = png(colours(112, 84)), png(colours(112, 84)[::-1].copy())
IMAGE_TOKENS = 4 * 3 + 2 + 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    file = seeing_files(tmp_path_factory.mktemp("seeing"))
    with running(lambda: open_llamacpp(file)) as server:
        yield server


def coded(image: bytes) -> str:
    return base64.b64encode(image).decode()


def asked(server: Running, *parts: dict[str, Any]) -> tuple[int, Any]:
    """A question with parts before it, answered greedily."""
    content = [*parts, {"type": "text", "text": "What is it?"}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4, "temperature": 0}
    return post(server, json.dumps(body).encode(), "/v1/chat/completions")


def by_url(image: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded(image)}"}}


def said(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_an_image_is_seen_and_another_is_another(server: Running) -> None:
    status, blind = asked(server)
    assert status == 200
    status, one = asked(server, by_url(ONE))
    assert status == 200
    _, other = asked(server, by_url(OTHER))
    _, again = asked(server, by_url(ONE))
    assert len({said(blind), said(one), said(other)}) == 3
    assert said(again) == said(one)
    longer = one["usage"]["prompt_tokens"] - blind["usage"]["prompt_tokens"]
    assert longer == IMAGE_TOKENS + 1  # and a new line


def test_anthropics_part_is_the_same_image(server: Running) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": coded(ONE)}
    status, found = asked(server, {"type": "image", "source": source})
    assert status == 200
    assert said(found) == said(asked(server, by_url(ONE))[1])


def test_ollama_and_the_responses_api_show_it_too(server: Running) -> None:
    settings = {"options": {"num_predict": 4, "temperature": 0}, "stream": False}
    message = {"role": "user", "content": "What is it?", "images": [coded(ONE)]}
    body = {"model": "m", "messages": [message], **settings}
    status, found = post(server, json.dumps(body).encode(), "/api/chat")
    assert status == 200
    assert found["message"]["content"] == said(asked(server, by_url(ONE))[1])
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{coded(ONE)}"}
    question = {"type": "input_text", "text": "What is it?"}
    body = {"input": [{"role": "user", "content": [image, question]}], "max_output_tokens": 4}
    status, found = post(server, json.dumps(body).encode(), "/v1/responses")
    assert status == 200
    assert found["usage"]["input_tokens"] > IMAGE_TOKENS


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (
            {"type": "image_url", "image_url": {"url": "https://a.b/c.png"}},
            "send the image as a data: URL",
        ),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}, "not in base64"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,aaaa"}}, "give a file"),
        ({"type": "image_url"}, "'image_url', but this model"),
    ],
)
def test_what_is_no_image_is_one_sentence(
    server: Running, part: dict[str, Any], words: str
) -> None:
    status, found = asked(server, part)
    assert status == 400
    assert words in found["error"]["message"]
    assert asked(server)[0] == 200


def test_an_image_may_be_longer_than_any_text_and_the_page_knows_that_it_is_seen(
    server: Running,
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    large = png(noise)
    assert len(large) > LEAST_BYTES
    assert asked(server, by_url(large))[0] == 200
    with urlopen(f"{server.url}/health") as response:
        assert json.load(response)["images"] is True
