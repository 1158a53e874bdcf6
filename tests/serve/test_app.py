"""The server, asked by OpenAI's own client and by worse ones."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from bitquilt.talk.sample import Sample
from tests.serve.conftest import KEY, Running, post, running
from tests.talk.book import Book, reciting

HOW_TO = Path(__file__).parents[2] / "docs/how-to/serve.md"

QUESTION: Any = [{"role": "user", "content": "What is 347 + 585?"}]
GREEDY: Any = {"model": "demo", "messages": QUESTION, "temperature": 0}

WILD: Any = {**GREEDY, "temperature": 5.0, "top_p": 1.0}
"""Words at random, for as long as they may go on."""

CALLING = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}|"
)
TOOL: Any = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
}


def test_reasoning_and_answer_apart(demo: Running) -> None:
    reply = demo.client.chat.completions.create(**GREEDY)
    (choice,) = reply.choices
    assert choice.message.content == "\\boxed{932}"
    assert choice.message.reasoning_content.endswith("347 + 585 = 932\n")
    assert choice.finish_reason == "stop"
    assert reply.bitquilt["final"] == "932"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert (
        0 < reply.usage.completion_tokens_details.reasoning_tokens < reply.usage.completion_tokens
    )


def test_the_answer_in_the_documentation_is_what_comes(demo: Running) -> None:
    page = HOW_TO.read_text(encoding="utf-8")
    (sent,) = re.findall(r"-d '(.*)'\n", page)
    (told,) = re.findall(r"^    (\{\n.*?^    \})\n", page, re.DOTALL | re.MULTILINE)
    status, said = post(demo, sent.encode())
    assert status == 200
    once = {"id", "created", "model"}
    shown = {name: value for name, value in json.loads(told).items() if name not in once}
    assert shown == {name: value for name, value in said.items() if name not in once}
    assert said.keys() == json.loads(told).keys()


def test_a_stream_says_the_same(demo: Running) -> None:
    whole = demo.client.chat.completions.create(**GREEDY)
    chunks = list(
        demo.client.chat.completions.create(
            **GREEDY, stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert reasoning == whole.choices[0].message.reasoning_content
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage
    assert len(chunks) > 5


def test_what_is_asked_for_is_obeyed(demo: Running) -> None:
    ask = demo.client.chat.completions.create
    short = ask(**GREEDY, max_tokens=5)
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (5, "length")
    hurried = ask(**GREEDY, extra_body={"think_budget": 12})
    assert hurried.bitquilt["closed"] == "budget"
    assert hurried.choices[0].message.content.startswith("\\boxed{")
    first, again, other = (ask(**WILD, max_tokens=20, seed=seed) for seed in (1, 1, 2))
    assert first.choices[0].message == again.choices[0].message != other.choices[0].message
    stopped = ask(**GREEDY, stop="9")
    assert stopped.choices[0].message.content == "\\boxed{"


def test_plain_text_is_continued(demo: Running) -> None:
    reply = demo.client.completions.create(model="demo", prompt="1 2 3 4 5", max_tokens=6)
    assert reply.usage.completion_tokens == 6
    chunks = demo.client.completions.create(
        model="demo", prompt="1 2 3 4 5", max_tokens=6, temperature=0, stream=True
    )
    greedy = demo.client.completions.create(
        model="demo", prompt="1 2 3 4 5", max_tokens=6, temperature=0
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == greedy.choices[0].text


def test_many_at_once_get_what_each_gets_alone(demo: Running) -> None:
    def ask(number: int) -> str:
        said: Any = [{"role": "user", "content": f"What is {347 + number} + 585?"}]
        reply = demo.client.chat.completions.create(model="demo", messages=said, temperature=0)
        return reply.bitquilt["final"]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(8)))
    assert together == [str(932 + number) for number in range(8)]


def test_models_and_health_and_metrics(demo: Running) -> None:
    assert [model.id for model in demo.client.models.list()] == ["demo"]
    connection = http.client.HTTPConnection("127.0.0.1", demo.port)
    connection.request("GET", "/health")
    health = {"status": "ok", "model": "demo", "images": False}
    assert json.loads(connection.getresponse().read()) == health
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {KEY}"})
    text = connection.getresponse().read().decode()
    assert "# TYPE bitquilt_completion_tokens_total counter" in text
    assert 'bitquilt_requests_total{path="/v1/models",status="200"}' in text


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"messages": []}, 400, "messages has 0 items, but must have at least 1"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "'text'"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, 400, "can read only 2,048"),
        ({"messages": [{"role": "user", "content": "w" * 1_000_000}]}, 413, "131,072 bytes"),
        ({"temperature": "hot"}, 400, "temperature must be a number"),
        ({"n": 0}, 400, "n must be 1 or more"),
        ({"n": 1000}, 400, "n must be 256 or less"),
        ({"tools": [TOOL]}, 400, "takes none"),
    ],
)
def test_bad_requests_are_told_why(
    demo: Running, change: dict[str, Any], status: int, sentence: str
) -> None:
    found, said = post(demo, json.dumps({**GREEDY, **change}).encode())
    assert found == status
    assert sentence in said["error"]["message"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"messages": [', {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"{}", {"Content-Type": "text/plain", "Origin": "http://localhost:3000"}, 415),
        (b"{}", {"Authorization": "Bearer wrong"}, 401),
        (b"{}", {"Authorization": "Bearer w\xc3\xb6rng"}, 401),
        (b"{}", {"Host": "evil.example"}, 403),
    ],
)
def test_worse_requests_too(
    demo: Running, body: bytes, headers: dict[str, str], status: int
) -> None:
    found, said = post(demo, body, **headers)
    assert found == status
    assert said["error"]["message"]


def test_wrong_paths_are_json_too(demo: Running) -> None:
    assert post(demo, b"{}", "/v1/nothing")[0] == 404
    assert "POST /v1/chat/completions" in post(demo, b"{}", "/v1/embeddings")[1]["error"]["message"]
    wrong = post(demo, b'{"prompt": 5.5}', "/v1/completions")[1]["error"]["message"]
    assert wrong.startswith("prompt: it is neither a text, nor a list")
    assert post(demo, b"{}", "/v1/models")[0] == 405
    with pytest.raises(openai.AuthenticationError, match="Bearer KEY"):
        demo.client.with_options(api_key="wrong").models.list()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_stops_its_answer(demo: Running, stream: bool) -> None:
    body = json.dumps({**WILD, "stream": stream}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    said = demo.server._metrics._said._value.get()
    with socket.create_connection(("127.0.0.1", demo.port)) as connection:
        connection.sendall(head.encode() + body)
        if stream:
            connection.recv(100)
        else:
            assert demo.within(60, lambda: demo.scheduler.running > 0)
    assert demo.settles()
    assert demo.server._metrics._said._value.get() == said  # it did not come to its end


def test_too_many_are_told_to_come_again(demo: Running) -> None:
    body = json.dumps({**WILD, "max_tokens": 100}).encode()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: post(demo, body), range(16)))
    statuses = [status for status, _ in found]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 8
    assert all("try again" in said["error"]["message"] for s, said in found if s == 429)


def test_after_a_crash_the_next_request_is_answered(demo: Running) -> None:
    crashed = demo.scheduler._engine
    os.kill(crashed.pid, signal.SIGKILL)  # type: ignore[union-attr]
    status, said = post(demo, json.dumps(GREEDY).encode())
    assert status == 500
    assert "crashed" in said["error"]["message"]
    assert demo.client.chat.completions.create(**GREEDY).bitquilt["final"] == "932"


def test_tool_calls() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    ask: Any = {"model": "model", "messages": QUESTION, "tools": [TOOL]}
    with running(lambda: Book(reciting("Well. " + call), CALLING)) as server:
        reply = server.client.chat.completions.create(**ask)
        (choice,) = reply.choices
        assert (choice.message.content, choice.finish_reason) == ("Well.", "tool_calls")
        (made,) = choice.message.tool_calls
        assert (made.function.name, json.loads(made.function.arguments)) == ("add", {"a": 1})
        chunks = list(server.client.chat.completions.create(**ask, stream=True))
        calls = [c.choices[0].delta.tool_calls for c in chunks if c.choices[0].delta.tool_calls]
        assert calls[0][0].function.arguments == made.function.arguments
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        answered = [
            *QUESTION,
            choice.message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}),
            {"role": "tool", "tool_call_id": made.id, "content": "2"},
        ]
        after = server.client.chat.completions.create(
            model="model", messages=answered, tools=[TOOL], tool_choice="none"
        )
        assert "tool_call" in (after.choices[0].message.content or "")


def test_a_loop_is_taken_back_in_a_stream() -> None:
    template = "<think></think>{% for m in messages %}{{ m.content }}{% endfor %}|"
    looping = reciting("<think>" + "round and round " * 200)
    ask: Any = {"model": "model", "messages": QUESTION, "stream": True, "max_tokens": 900}
    with running(lambda: Book(looping, template)) as server:
        chunks = list(server.client.chat.completions.create(**ask))
    told = [chunk.bitquilt for chunk in chunks if hasattr(chunk, "bitquilt")]
    assert any("rollback" in one for one in told)
    assert {"closing": "loop"} in told
    assert told[-1]["rollbacks"] >= 3


@pytest.mark.parametrize(
    ("template", "status"), [("{% nonsense %}", 400), ("{{ none + 'x' }}", 400), (None, 400)]
)
def test_a_template_that_fails_harms_nobody_else(template: str | None, status: int) -> None:
    loaded = []

    def engine() -> Book:
        loaded.append(Book(reciting("Hello " * 1500), template, context=100_000))
        return loaded[-1]

    text = {"prompt": "x|", "max_tokens": 8000, "detect_loops": False}
    with running(engine, max_tokens=10_000) as server, ThreadPoolExecutor(1) as pool:
        other = pool.submit(post, server, json.dumps(text).encode(), "/v1/completions")
        assert server.within(20, lambda: server.scheduler.running == 1)
        found, said = post(server, json.dumps({"messages": QUESTION}).encode())
        assert found == status
        assert "the chat template of the model" in said["error"]["message"] or template is None
        assert other.result()[0] == 200
    assert len(loaded) == 1


def test_a_bug_in_preparing_harms_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*_: object) -> None:
        raise LookupError

    monkeypatch.setattr("bitquilt.serve.app.compose", buggy)
    with running(lambda: Book(reciting("Hello"), CALLING)) as server:
        kept = server.scheduler._engine
        assert post(server, json.dumps({"messages": QUESTION}).encode())[0] == 500
        assert post(server, b'{"prompt": "x|"}', "/v1/completions")[0] == 200
        assert server.scheduler._engine is kept


def test_an_answer_of_no_numbers_is_refused_alone() -> None:
    """The model overflows on one question; who asked another one at the same time is answered."""
    slow = "a" * 3000

    def model(so_far: str) -> dict[str, float]:
        if "boom" in so_far and so_far.endswith("|aa"):
            return {"a": float("nan")}
        return reciting(slow)(so_far)

    template = "{% for m in messages %}{{ m.content }}{% endfor %}|"
    options: Any = {"model": "model", "max_tokens": 3100, "extra_body": {"detect_loops": False}}
    opened = running(lambda: Book(model, template), parallel=2, queue=2)
    with opened as server, ThreadPoolExecutor() as pool:
        ask = server.client.chat.completions.create
        sound = pool.submit(ask, messages=[{"role": "user", "content": "hello"}], **options)
        with pytest.raises(openai.InternalServerError, match="computes NaN or infinity") as refused:
            ask(messages=[{"role": "user", "content": "boom"}], **options)
        assert "Traceback" not in str(refused.value)
        (choice,) = sound.result().choices
        assert choice.message.content == slow
        assert server.settles()


@pytest.mark.parametrize("where", ["push", "begin", "request"])
def test_a_bug_in_one_answer_ends_its_request_alone(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """An exception in what is done for one answer, while another one is under way."""
    sound = getattr(Sample, where)

    def buggy(self: Sample, *args: Any) -> Any:
        if self._settings.max_tokens == 77:
            raise LookupError(where)
        return sound(self, *args)

    monkeypatch.setattr(Sample, where, buggy)
    opened = []

    def engine() -> Book:
        opened.append(Book(reciting("Hello " * 1500), CALLING, context=100_000))
        return opened[-1]

    text = {"prompt": "x|", "max_tokens": 8000, "detect_loops": False}
    with running(engine, max_tokens=10_000) as server, ThreadPoolExecutor(1) as pool:
        other = pool.submit(post, server, json.dumps(text).encode(), "/v1/completions")
        assert server.within(20, lambda: server.scheduler.running == 1)
        for stream in (False, True):
            bad = {"messages": QUESTION, "max_tokens": 77, "n": 2, "stream": stream}
            found, said = post(server, json.dumps(bad).encode())
            assert found == 500
            assert "try again" in said["error"]["message"]
        status, answered = other.result()
        assert (status, len(answered["choices"][0]["text"])) == (200, 8000)
        assert server.settles()
    assert len(opened) == 1
