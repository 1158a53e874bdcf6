"""Ollama's API, by ollama's own client: the examples of its README."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import gguf
import ollama
import pydantic
import pytest

from tests.serve.agents import TOOL, add, serving
from tests.serve.conftest import KEY, Running, post, running
from tests.talk.book import Book, reciting

USER: Any = [{"role": "user", "content": "Why is the sky blue?"}]
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> ollama.Client:
    return ollama.Client(host=server.url, headers=HEADERS)


def test_chat(client: ollama.Client) -> None:
    reply = client.chat(model="model", messages=USER)
    assert reply["message"]["content"] == reply.message.content == "Hello."
    assert reply.message.thinking == "Hm."
    assert (reply.done, reply.done_reason) == (True, "stop")
    assert reply.prompt_eval_count > 0
    assert reply.total_duration >= reply.eval_duration > 0


def test_chat_in_a_stream(client: ollama.Client) -> None:
    parts = list(client.chat(model="model:latest", messages=USER, stream=True))
    assert "".join(part.message.content or "" for part in parts) == "Hello."
    assert "".join(part.message.thinking or "" for part in parts) == "Hm."
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_thinking_off(client: ollama.Client) -> None:
    assert client.chat(model="model", messages=USER, think=False).message.thinking is None


def test_generate(client: ollama.Client) -> None:
    assert client.generate(model="model", prompt="hi", system="Be kind.").response == "Hello."
    parts = list(client.generate(model="model", prompt="hi", stream=True))
    assert "".join(part.response for part in parts) == "Hello."
    raw = client.generate(model="model", prompt="hi|", raw=True, options={"num_predict": 7})
    assert (raw.response, raw.done_reason) == ("<think>", "length")
    assert client.generate(model="model", keep_alive=0).done_reason == "load"


def test_options(client: ollama.Client) -> None:
    options = {"num_ctx": 4096, "temperature": 0, "seed": 1, "stop": ["o"], "num_predict": -1}
    assert client.chat(model="model", messages=USER, options=options).message.content == "Hell"


def test_a_function_as_a_tool(client: ollama.Client) -> None:
    messages: list[Any] = [*USER]
    reply = client.chat(model="model", messages=messages, tools=[add])
    (call,) = reply.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("add", {"a": 1, "b": 2})
    result = add(**call.function.arguments)
    messages += [reply.message, {"role": "tool", "content": str(result), "tool_name": "add"}]
    assert client.chat(model="model", messages=messages, tools=[add]).message.content == "It is 3."
    streamed = client.chat(model="model", messages=USER, tools=[TOOL], stream=True)
    assert [part.message.tool_calls for part in streamed if part.message.tool_calls]


def test_structured(client: ollama.Client) -> None:
    class Person(pydantic.BaseModel):
        name: str
        age: int

    for form in ("json", Person.model_json_schema()):
        reply = client.chat(model="model", messages=USER, format=form, think=False)
        assert Person.model_validate_json(reply.message.content) == Person(name="Ada", age=36)


def test_models(client: ollama.Client) -> None:
    assert [model.model for model in client.list().models] == ["model"]
    assert [model.model for model in client.ps().models] == ["model"]
    shown = client.show("model")
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.modelinfo["bitquilt.context_length"] == 100_000
    assert client.chat(model="llama3", messages=USER).message.content == "Hello."
    with pytest.raises(ollama.ResponseError, match="'image'"):
        client.chat(model="model", messages=[{**USER[0], "images": [b"png"]}])


def test_what_the_file_says_is_shown(demo: Running, demo_gguf: Path) -> None:
    """Against gguf-py, an independent reader."""
    client = ollama.Client(host=demo.url, headers=HEADERS)
    reader = gguf.GGUFReader(demo_gguf)
    shown = client.show("demo")
    info = shown.modelinfo
    kind = info["general.architecture"]
    for key in ("context_length", "embedding_length", "block_count", "attention.head_count"):
        assert info[f"{kind}.{key}"] == reader.fields[f"{kind}.{key}"].contents()
    count = sum(int(tensor.n_elements) for tensor in reader.tensors)
    assert info["general.parameter_count"] == count
    assert shown.details.parameter_size == f"{count / 1e6:.2f}M"
    assert (shown.details.format, shown.details.family) == ("gguf", kind)
    assert shown.details.quantization_level == "Q8_0"
    assert info["tokenizer.ggml.tokens"] == []
    assert "tokenizer.chat_template" not in info
    assert shown.template == reader.fields["tokenizer.chat_template"].contents()
    (listed,), (loaded,) = client.list().models, client.ps().models
    assert listed.size == loaded.size == demo_gguf.stat().st_size
    assert listed.details == loaded.details == shown.details
    assert loaded.context_length == info[f"{kind}.context_length"]
    assert loaded.expires_at.year > datetime.now().year + 20
    _, told = post(demo, b'{"model": "demo"}', "/api/show")
    assert {one["name"]: one["shape"] for one in told["tensors"]} == {
        tensor.name: tensor.shape.tolist() for tensor in reader.tensors
    }


def test_async(server: Running) -> None:
    async def ask() -> str:
        client = ollama.AsyncClient(host=server.url, headers=HEADERS)
        parts = await client.chat(model="model", messages=USER, stream=True)
        return "".join([part.message.content or "" async for part in parts])

    assert asyncio.run(ask()) == "Hello."


def test_a_body_as_curl_sends_it(server: Running) -> None:
    """``curl http://localhost:11434/api/chat -d '{…}'`` calls it a form."""
    body = json.dumps({"model": "model", "messages": USER, "stream": False}).encode()
    status, said = post(
        server, body, "/api/chat", **{"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert (status, said["message"]["content"]) == (200, "Hello.")


def test_a_model_without_a_template_goes_on_with_the_prompt() -> None:
    with running(lambda: Book(reciting("blue"))) as server:
        body = {"prompt": "The sky is |", "stream": False}
        status, said = post(server, json.dumps(body).encode(), "/api/generate")
        assert (status, said["response"]) == (200, "blue")
        body = {"messages": USER, "tools": [TOOL], "stream": False}
        status, said = post(server, json.dumps(body).encode(), "/api/chat")
        assert status == 400
        assert "no chat template" in said["error"]


def test_version_and_errors(server: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/api/version", headers=HEADERS)
    version = json.loads(connection.getresponse().read())["version"]
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)  # what editors ask for
    assert isinstance(post(server, b"{", "/api/chat")[1]["error"], str)
    assert isinstance(post(server, b"{}", "/api/embed")[1]["error"], str)
