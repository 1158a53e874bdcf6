"""What people reported about the answers of other servers: streams, choices, formats, pages.

The requests alone, one for each report, are in :mod:`.test_reports`.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.agents import TOOL, serving
from tests.serve.conftest import Running, post
from tests.serve.test_reports import CHAT, SERVER_TOOLS, TEXT, USER, called, tool


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as found:
        yield found


@pytest.mark.parametrize("path", ["/v1//models", "/v1/v1/models", "/v1/models/", "//v1/models"])
def test_base_urls_are_joined_badly(server: Running, path: str) -> None:
    """cline/cline#12532, arbs-io/github-copilot-llm-gateway#21, lmstudio-bug-tracker#1988."""
    response, said = fetch(server, "GET", path)
    assert response.status == 200
    assert said["data"][0]["created"] > 0
    question = json.dumps({"messages": [USER]})
    twice = path.replace("models", "chat/completions")
    assert fetch(server, "POST", twice, question)[0].status == 200


def test_the_tool_that_is_named_is_called(server: Running) -> None:
    """ggml-org/llama.cpp#26535, and OpenAI's newer way to allow some tools only."""
    other = tool({"type": "object"}, "other")
    named = {"type": "function", "function": {"name": "other"}}
    allowed = {"mode": "required", "tools": [named]}
    for choice in (named, {"type": "allowed_tools", "allowed_tools": allowed}):
        body = {"messages": [USER], "tools": [TOOL, other], "tool_choice": choice}
        _, said = post(server, json.dumps(body).encode())
        (call,) = said["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "other"


def test_tools_of_other_servers_are_left_out_and_told(server: Running) -> None:
    body = json.dumps({"messages": [USER], "tools": SERVER_TOOLS})
    response, _ = fetch(server, "POST", CHAT, body)
    assert response.getheader("bitquilt-ignored") == "tools.web_search, tools.custom, tools.shell"
    body = json.dumps({"messages": [USER], "tools": SERVER_TOOLS, "tool_choice": "required"})
    response, said = fetch(server, "POST", CHAT, body)
    assert response.status == 400
    assert "there are no tools" in said["error"]["message"]


def test_a_misspelt_option_is_told(server: Running) -> None:
    """ollama/ollama#7653: it went unnoticed."""
    body = json.dumps({"messages": [USER], "options": {"num_predct": 3}, "stream": False})
    assert fetch(server, "POST", "/api/chat", body)[0].getheader("bitquilt-ignored") == "num_predct"


def test_a_pattern_is_obeyed(server: Running) -> None:
    """ggml-org/llama.cpp#19051: it was dropped in silence."""
    schema = {"properties": {"a": {"type": "string", "pattern": r"^hello there indeed\!$"}}}
    schema |= {"type": "object", "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    _, said = post(server, json.dumps({"messages": [USER], "response_format": form}).encode())
    assert json.loads(said["choices"][0]["message"]["content"]) == {"a": "hello there indeed!"}


def test_a_stop_is_cut_out_of_a_stream_and_never_told(server: Running) -> None:
    """vllm#3574, mzau/mlx-knife#68, SharpAI/SwiftLM#126 and 133, TGI#1254: its beginning leaked."""
    for path, asked in ((CHAT, {"messages": [USER]}), (TEXT, {"prompt": "|"})):
        body = json.dumps({**asked, "stop": ["never", "ello."], "stream": True})
        lines = fetch(server, "POST", path, body)[1].splitlines()
        chunks = [
            json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")
        ]
        told = [one["text"] if "text" in one else one["delta"].get("content") for one in chunks]
        assert "".join(filter(None, told)).endswith("H")
        assert chunks[-1]["finish_reason"] == "stop"


def test_a_character_of_several_tokens_comes_whole(demo: Running) -> None:
    """Luce-Org/lucebox#641, antonellof/ferrox#124, penta2himajin/qwisp#134, mlc-llm#1142."""
    said = "⌈m/2⌉ ist größer 😀🇩🇪 你好"
    _, whole = post(demo, json.dumps({"content": said}).encode(), "/tokenize")
    assert whole["count"] > len(said)  # some have several
    for path, asked in ((CHAT, {"messages": [USER]}), (TEXT, {"prompt": "a"})):
        body = json.dumps({**asked, "guided_choice": [said], "stream": True})
        lines = fetch(demo, "POST", path, body)[1].splitlines()
        chunks = [
            json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")
        ]
        told = [one["text"] if "text" in one else one["delta"].get("content") for one in chunks]
        assert "".join(filter(None, told)) == said


def test_a_message_without_calls_has_no_list_of_them(server: Running) -> None:
    """vllm-project/vllm#44104: an empty list made agents look for a call in it."""
    _, said = post(server, json.dumps({"messages": called(), "tools": [TOOL]}).encode())
    assert "tool_calls" not in said["choices"][0]["message"]
    body = json.dumps({"messages": called(), "tools": [TOOL], "stream": True})
    assert "tool_calls" not in fetch(server, "POST", CHAT, body)[1]


@pytest.mark.parametrize("schema", [{"response_format": {"type": "json_object"}}, {}])
def test_a_schema_is_followed_wherever_it_stands(server: Running, schema: Any) -> None:
    """ggml-org/llama.cpp#24097 and 11988, TGI#2046: answers only looked as if they were."""
    form = {"type": "object", "properties": {"x": {"const": 7}}, "required": ["x"]}
    form["additionalProperties"] = False
    for one in (
        {"json_schema": form, **schema},
        {"guided_json": form, **schema},
        {"response_format": {"type": "json_object", "value": form}},
        {"grammar": {"type": "json", "value": form}},
    ):
        _, said = post(server, json.dumps({"messages": [USER], **one}).encode())
        assert json.loads(said["choices"][0]["message"]["content"]) == {"x": 7}


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template_kwargs": '{"enable_thinking": false}'},
        {"chat_template_kwargs": {"enable_thinking": "false"}},
        {"thinking": False},
        {"reasoning": False},
        {"reasoning": "none"},
    ],
)
def test_thinking_is_off_in_any_words(server: Running, fields: Any) -> None:
    """theroyallab/tabbyAPI#340 and InternLM/lmdeploy#4733: it could not be turned off."""
    _, said = post(server, json.dumps({"messages": [USER], **fields}).encode())
    assert "reasoning_content" not in said["choices"][0]["message"]


@pytest.mark.parametrize(
    ("choice", "calls"),
    [({"type": "any"}, 1), ({"type": "required"}, 1), ("add", 1), ({"type": "none"}, 0)],
)
def test_a_choice_in_the_words_of_others(server: Running, choice: Any, calls: int) -> None:
    body = {"messages": [USER], "tools": [TOOL], "tool_choice": choice}
    _, said = post(server, json.dumps(body).encode())
    assert len(said["choices"][0]["message"].get("tool_calls", ())) == calls


def test_the_pieces_of_a_stream_belong_together(server: Running) -> None:
    """ollama#7881, langbot-app/LangBot#2262, open-webui#23917, litellm#11528, llama.cpp#15443."""
    asked: Any = {"messages": [USER], "tools": [TOOL], "stream_options": {"include_usage": True}}
    body = json.dumps({**asked, "tool_choice": "required", "stream": True})
    lines = fetch(server, "POST", CHAT, body)[1].splitlines()
    assert lines[-2] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines[:-2] if line]
    assert len({(one["id"], one["created"], one["model"]) for one in chunks}) == 1
    *told, usage = chunks
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0
    assert told[0]["choices"][0]["delta"]["role"] == "assistant"
    calls = [c for one in told for c in one["choices"][0]["delta"].get("tool_calls", ())]
    assert {call["index"] for call in calls} == {0}
    assert len({call["id"] for call in calls if "id" in call}) == 1


def test_what_a_model_can_do_is_shown(server: Running) -> None:
    """docker/model-runner#1046, lmstudio-bug-tracker#1089."""
    _, shown = post(server, b'{"model": "any"}', "/api/show")
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["details"]["family"]
    _, said = post(server, b'{"input": "hi"}', "/v1/responses")
    assert all(part["annotations"] == [] for part in said["output"][-1]["content"])


def fetch(server: Running, method: str, path: str, body: str | None = None) -> tuple[Any, Any]:
    """The response and what it says: JSON, or text."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    said = response.read().decode()
    connection.close()
    return response, json.loads(said) if said.startswith("{") else said


def ask(server: Running, method: str, body: str | None, **headers: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request(method, CHAT, body, headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def test_a_preflight_has_no_key(server: Running) -> None:
    """ggml-org/llama.cpp#6544, vllm-project/vllm#4862, lordmathis/llamactl#52, Govorunb/gary#10."""
    wanted = "authorization,content-type,http-referer,x-title"
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": wanted}
    response = ask(server, "OPTIONS", None, Origin="http://localhost:5173", **asking)
    assert response.status == 200
    allowed = response.getheader("access-control-allow-headers").replace(" ", "").split(",")
    assert set(wanted.split(",")) <= set(allowed)


def test_a_stream_may_be_read_by_the_page_that_asked(server: Running) -> None:
    """yazon/flexllama#30: only the preflight had the headers."""
    body = json.dumps({"messages": [USER], "stream": True})
    headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    response = ask(server, "POST", body, Origin="http://localhost:5173", **headers)
    assert response.getheader("access-control-allow-origin") == "http://localhost:5173"


def test_what_was_asked_before_is_in_the_conversation(server: Running) -> None:
    """ogx-ai/ogx#2074: the output of the response before was there, and its input was not."""
    create = server.client.responses.create
    first = create(model="model", input="a long first question")
    then = create(model="model", input="and?", previous_response_id=first.id)
    assert then.usage.input_tokens > first.usage.input_tokens + len("Hello.and?")
