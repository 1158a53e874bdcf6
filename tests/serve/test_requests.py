"""What clients of other servers send is understood: one test for each report about one.

Where a report is public, the test names it.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import openai
import pytest

from bitquilt.serve.errors import RefusedError
from bitquilt.serve.requests import ChatRequest, TextRequest, ignored_header, parse_request
from tests.serve.conftest import Running, post, running
from tests.talk.book import Book, reciting

USER: Any = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "noon"}
TEMPLATE = (
    "{{ tools | tojson if tools }}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{{ m.tool_calls | tojson if m.tool_calls }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is false %}(quiet)"
    "{% endif %}{{ reasoning_effort }}{% endif %}|{# <tool_call> #}"
)


class Prompts(Book):
    """A book that keeps the prompts it reads."""

    def __init__(self, template: str = TEMPLATE, said: str = "Hello.") -> None:
        super().__init__(reciting(said), template)
        self.read: list[str] = []

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        if text.endswith("|"):
            self.read.append(text)
        return super().tokenize(text, add_special)


@pytest.fixture(scope="module")
def book() -> Prompts:
    return Prompts()


@pytest.fixture(scope="module")
def server(book: Prompts) -> Any:
    with running(lambda: book) as found:
        yield found


def chat(server: Running, *messages: Any, **fields: Any) -> tuple[int, dict[str, Any]]:
    return post(server, json.dumps({"messages": messages, **fields}).encode())


def assistant(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "Hello.", **fields}


DUMPED = assistant(refusal=None, annotations=None, audio=None, function_call=None, tool_calls=None)


@pytest.mark.parametrize(
    "messages",
    [
        [USER, DUMPED, USER],  # openai-python's model_dump()
        *([USER, {**assistant(), field: None}, USER] for field in DUMPED if field != "role"),
        [USER, assistant(annotations=[], tool_calls=[]), USER],
        [{**USER, "id": "m1", "timestamp": 1, "createdAt": "now", "parts": []}],  # Vercel's AI SDK
        [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {}}]}],
        [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        [{"role": "user", "content": ["hi", "there"]}],  # vLLM takes texts as parts
        [{"role": "user", "content": {"type": "text", "text": "hi"}}],
        [{"role": "user", "content": []}],
        [{"role": "user"}],
        [{"role": "user", "content": 5}],
        [{"role": "developer", "content": "Be brief."}, USER],
        [USER, assistant(reasoning="hm", reasoning_details=[{"type": "text"}]), USER],
        [USER, assistant(reasoning_content=None), USER],
        [USER, assistant(content=[{"type": "thinking", "thinking": []}, {"text": "a"}]), USER],
        [USER, assistant(content=[{"type": "refusal", "refusal": "No."}]), USER],
        [USER, assistant(content=None, tool_calls=[{**CALL, "index": 0}]), RESULT],
        [USER, assistant(tool_calls=[{**CALL, "id": None, "type": None}]), RESULT],
        [USER, assistant(tool_calls=[{"function": {"name": "now"}}]), RESULT],
        [USER, assistant(tool_calls=[CALL]), {**RESULT, "content": {"time": "noon"}}],
        [USER, assistant(tool_calls=[CALL]), {**RESULT, "content": None, "name": "now"}],
        [USER, assistant(tool_calls=[CALL]), {**RESULT, "content": [{"json": 1}]}],
        [USER, assistant(tool_calls=[CALL])],
        [USER, assistant(function_call={"name": "now", "arguments": "{}"}), RESULT],
        [USER, assistant(content=None, function_call={"name": "n", "arguments": ""}),
         {"role": "function", "name": "n", "content": "x"}],
        [USER, assistant(content=""), USER],
        [USER, assistant(content=None)],
        [{"role": "critic", "content": "Another role, which the template knows."}, USER],
    ],
    ids=lambda messages: json.dumps(messages)[:60],
)  # fmt: skip
def test_messages_that_clients_send(server: Running, messages: list[Any]) -> None:
    status, said = chat(server, *messages)
    assert status == 200, said
    assert said["choices"][0]["message"] == {"role": "assistant", "content": "Hello."}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("", "{}"), (None, "{}"), (" ", "{}"), ("{}", "{}"), ({"a": 1}, '{"a": 1}'),
        ('{"a": 1}', '{"a": 1}'), ('{"a": ', '"{\\"a\\": "'), ("[1]", '"[1]"'), ("null", '"null"'),
    ],
)  # fmt: skip
def test_arguments_of_earlier_calls(
    server: Running, book: Prompts, written: Any, read: str
) -> None:
    """Also a call that was cut off in its arguments: the conversation goes on."""
    call = {"id": "c1", "function": {"name": "now", "arguments": written}}
    status, said = chat(server, USER, assistant(content=None, tool_calls=[call]), RESULT)
    assert status == 200, said
    assert f'"arguments": {read}' in book.read[-1]


@pytest.mark.parametrize(
    "fields",
    [
        dict.fromkeys(
            (*ChatRequest.model_fields, "user", "functions", "logit_bias", "best_of", "nonsense")
        ),
        {"stop": []}, {"stop": "x"}, {"stop": ["", "x"]}, {"stop": None},
        {"seed": -1}, {"seed": -(1 << 62)}, {"seed": 1 << 53}, {"temperature": 0, "top_p": 0},
        {"top_k": -1}, {"top_k": 0}, {"repeat_penalty": 1.1}, {"max_tokens": -1},
        {"max_completion_tokens": 5, "max_tokens": None}, {"n_predict": 5},
        {"stream_options": None}, {"stream_options": {"include_usage": None, "more": 1}},
        {"tools": []}, {"tool_choice": "auto"}, {"parallel_tool_calls": False},
        {"user": "me", "metadata": {}, "store": False, "service_tier": "auto"},
        {"chat_template_kwargs": {}}, {"response_format": {"type": "text"}},
        {"functions": [{"name": "now"}]}, {"tools": [{"function": {"name": "now"}}]},
        {"cache_prompt": True, "id_slot": -1, "timings_per_token": True},  # llama.cpp
    ],
    ids=lambda fields: json.dumps(fields)[:40],
)  # fmt: skip
def test_fields_that_clients_send(server: Running, fields: dict[str, Any]) -> None:
    fields = {name: value for name, value in fields.items() if name != "messages"}
    status, said = chat(server, USER, **fields)
    assert status == 200, said
    assert said["choices"][0]["message"]["content"] in ("Hello.", "Hello")


def nulls(value: Any, place: str = "") -> list[str]:
    """Where a JSON value has nulls."""
    if isinstance(value, dict):
        return [found for name, item in value.items() for found in nulls(item, f"{place}.{name}")]
    if isinstance(value, list):
        return [found for item in value for found in nulls(item, place)]
    return [place] if value is None else []


def test_nothing_null_is_sent_back(server: Running) -> None:
    for fields in ({}, {"n": 2}, {"temperature": "hot"}, {"max_tokens": 1}):
        said = chat(server, USER, **fields)[1]
        said.pop("bitquilt", None)
        assert nulls(said) == []
    assert nulls(post(server, b'{"prompt": "x|"}', "/v1/completions")[1]["choices"]) == []


def test_an_unknown_field_is_ignored_and_told(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    raw = server.client.chat.completions.with_raw_response
    ask: Any = {"model": "model", "messages": [USER]}
    plain = raw.create(**ask)
    assert "bitquilt-ignored" not in plain.headers
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        told = raw.create(**ask, extra_body={"temprature": 1, "b\nad\u00e9": 2, "user": "me"})
    assert told.headers["bitquilt-ignored"] == r"'b\nad\xe9', temprature"
    (record,) = caplog.records
    assert "temprature" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_strict_refuses_it() -> None:
    body = b'{"messages": [{"role": "user", "content": "x", "id": 1}], "temprature": 1}'
    with pytest.raises(RefusedError, match=r"temprature: .* did you mean temperature\?"):
        parse_request(ChatRequest, body, strict=True)
    assert parse_request(ChatRequest, body.replace(b"temprature", b"user"), strict=True)
    with running(lambda: Book(reciting("Hello."), TEMPLATE), strict=True) as server:
        assert chat(server, USER, temprature=1)[0] == 400
        assert chat(server, USER)[0] == 200
        status, said = chat(server, USER, model="gpt-4o")
        assert status == 404
        assert "no model 'gpt-4o'" in said["error"]["message"]


def test_any_name_of_the_model_is_answered_and_the_right_one_told(server: Running) -> None:
    for asking in (
        lambda name: server.client.chat.completions.with_raw_response.create(
            model=name, messages=[USER]
        ),
        lambda name: server.client.completions.with_raw_response.create(model=name, prompt="x|"),
        lambda name: server.client.responses.with_raw_response.create(model=name, input="x"),
    ):
        told = asking("gpt-4o")
        assert told.parse().model == "model"
        assert told.headers["bitquilt-ignored"] == "model"
        assert "bitquilt-ignored" not in asking("model").headers


def test_the_header_stays_short() -> None:
    (value,) = ignored_header([f"{number}{'x' * 500}" for number in range(500)]).values()
    assert len(value) < 2000


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a|", 1), (["a|"], 1), (["a|", "b|"], 2), ([72, 124], 1), ([[72, 124], [73, 124]], 2),
    ],
)  # fmt: skip
def test_prompts_as_texts_and_tokens(server: Running, prompt: Any, texts: int) -> None:
    fields = {"prompt": prompt, "n": 1, "logit_bias": {}, "suffix": None, "best_of": 1}
    status, said = post(server, json.dumps(fields).encode(), "/v1/completions")
    assert status == 200, said
    assert [choice["text"] for choice in said["choices"]] == ["Hello."] * texts
    assert [choice["index"] for choice in said["choices"]] == list(range(texts))


@pytest.mark.parametrize(
    ("fields", "word"), [({"suffix": "end"}, "suffix"), ({"best_of": 3, "n": 2}, "best_of")]
)
def test_what_would_be_another_answer_is_refused_by_name(
    server: Running, fields: dict[str, Any], word: str
) -> None:
    status, said = post(server, json.dumps({"prompt": "a|", **fields}).encode(), "/v1/completions")
    assert status == 400
    assert word in said["error"]["message"]


@pytest.mark.parametrize("prompt", [[], "", ["a", ""], [[]], [1, "a"], [-1], [99999], {}, 5])
def test_prompts_that_are_none(server: Running, prompt: Any) -> None:
    status, said = post(server, json.dumps({"prompt": prompt}).encode(), "/v1/completions")
    assert status == 400
    assert "prompt" in said["error"]["message"]


def test_several_answers_whole_and_streamed(server: Running) -> None:
    ask: Any = {"model": "model", "messages": [USER], "n": 3}
    reply = server.client.chat.completions.create(**ask)
    assert [(c.index, c.message.content) for c in reply.choices] == [
        (index, "Hello.") for index in range(3)
    ]
    assert reply.usage.completion_tokens == 3 * 6
    texts = ["", "", ""]
    finished = []
    for chunk in server.client.chat.completions.create(**ask, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        finished += [choice.index] if choice.finish_reason else []
    assert texts == ["Hello."] * 3
    assert sorted(finished) == [0, 1, 2]


def test_answers_differ_by_seed_and_are_the_same_again(demo: Running) -> None:
    ask: Any = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Hello"}],
        "n": 2,
        "temperature": 3.0,
        "max_tokens": 8,
    }
    create = demo.client.chat.completions.create

    def texts(**more: Any) -> list[str | None]:
        return [choice.message.content for choice in create(**ask, **more).choices]

    assert texts() != texts()
    # The prompt is kept by now. How much of it is read changes the last digits of its logits.
    assert texts(seed=5) == texts(seed=5)
    assert len({*texts(seed=5)}) == 2


def test_a_prompt_that_is_too_long_refuses_its_request_before_it_begins(server: Running) -> None:
    prompts = ["a|"] * 20 + ["long " * 3000 + "|"]
    raw: Any = {"prompt": prompts, "stream": True}
    status, said = post(server, json.dumps(raw).encode(), "/v1/completions")
    assert status == 400
    assert "can read only" in said["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({}, "<assistant>The capital is"),
        ({"add_generation_prompt": False, "continue_final_message": True},
         "<assistant>The capital is"),
        ({"continue_final_message": True}, "<assistant>The capital is"),
        ({"add_generation_prompt": True}, "<assistant>The capital is</assistant><assistant>|"),
        ({"continue_final_message": False}, "<assistant>The capital is</assistant><assistant>|"),
        ({"add_generation_prompt": False}, "<assistant>The capital is</assistant>|"),
    ],
)  # fmt: skip
def test_an_answer_that_is_begun_is_continued(fields: dict[str, Any], end: str) -> None:
    """llama.cpp continues the assistant's last message, vLLM if it is told to."""
    seen: list[str] = []

    class Seeing(Book):
        def prefill(self, prompts: Any, room: int) -> Any:
            seen.extend(self.decode(prompt) for prompt in prompts)
            return super().prefill(prompts, room)

    with running(lambda: Seeing(reciting("x"), TEMPLATE)) as server:
        status, said = chat(server, USER, assistant(content="The capital is"), **fields)
    assert status == 200, said
    assert seen == ["<user>hi</user>" + end]


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({"chat_template_kwargs": {"enable_thinking": False}}, "(quiet)|"),
        ({"chat_template_kwargs": {"thinking": False}}, "(quiet)|"),
        ({"enable_thinking": False}, "(quiet)|"),
        ({"reasoning_effort": "none"}, "(quiet)none|"),
        ({"reasoning": {"enabled": False}}, "(quiet)|"),
        ({"thinking": {"type": "disabled"}}, "(quiet)|"),
        ({"reasoning_effort": "high"}, "<assistant>high|"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "<assistant>|"),
        ({"chat_template_kwargs": {"messages": [], "eos_token": "x"}}, "<assistant>|"),
    ],
)  # fmt: skip
def test_the_template_is_told(
    server: Running, book: Prompts, fields: dict[str, Any], end: str
) -> None:
    status, said = chat(server, USER, **fields)
    assert status == 200, said
    assert book.read[-1].endswith(end)


def test_thinking_is_off_where_the_template_has_no_switch() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}<think>|{% endif %}{# </think> #}"

    def model(so_far: str) -> dict[str, float]:
        thought, closed, _ = so_far.rpartition("</think>\n\n")
        if closed:
            return reciting("Yes.")(so_far.replace(thought + closed, "|"))
        return reciting("deep thoughts</think>\n\n")(so_far)

    with running(lambda: Book(model, template)) as server:
        status, said = chat(server, USER, chat_template_kwargs={"enable_thinking": False})
        assert status == 200
        assert said["bitquilt"]["closed"] == "budget"
        assert "deep" not in json.dumps(said)
        assert "deep" in json.dumps(chat(server, USER)[1])


def shown(part: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}]


URL = "data:image/png;base64,iVBORw0KGgo="
OLLAMA: dict[str, Any] = {"role": "user", "content": "What is this?", "images": ["iVBORw0KGgo="]}


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/v1/chat/completions",
         {"messages": shown({"type": "image_url", "image_url": {"url": URL}})}, "image_url"),
        ("/v1/chat/completions", {"messages": shown({"type": "image", "source": {}})}, "image"),
        ("/v1/chat/completions",
         {"messages": shown({"type": "input_audio", "input_audio": {}})}, "input_audio"),
        ("/v1/responses",
         {"input": shown({"type": "input_image", "image_url": URL})}, "input_image"),
        ("/api/chat", {"messages": [OLLAMA]}, "image"),
        ("/api/generate", {"prompt": "What is this?", "images": OLLAMA["images"]}, "image"),
        ("/api/generate", {"prompt": "It is", "images": ["iVBO"], "raw": True}, "image"),
        ("/api/generate", {"images": OLLAMA["images"]}, "image"),
    ],
)  # fmt: skip
def test_images_are_refused_by_name(
    server: Running, path: str, body: dict[str, Any], kind: str
) -> None:
    """In every dialect; an image that is left out in silence is answered by a guess."""
    status, said = post(server, json.dumps(body).encode(), path)
    sentence = said["error"] if path.startswith("/api") else said["error"]["message"]
    assert status == 400
    assert f"a part is of type '{kind}', but this model reads text only; send" in sentence


def test_the_sdk_objects_go_back_as_they_came(server: Running) -> None:
    create = server.client.chat.completions.create
    first = create(model="model", messages=[USER]).choices[0].message
    for message in (first, first.model_dump(), first.to_dict()):
        create(model="model", messages=[USER, message, USER])


def test_paths_without_v1_and_a_model_by_name(server: Running) -> None:
    without = openai.OpenAI(base_url=server.url, api_key="secret")
    assert without.chat.completions.create(model="model", messages=[USER]).choices
    assert server.client.models.retrieve("model").id == "model"
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("other")


def test_a_text_request_has_no_field_that_is_not_kept() -> None:
    asked = parse_request(TextRequest, b'{"prompt": "x", "echo": null, "suffix": null}')
    assert asked.unknown == []
