"""What people reported about other servers, sent to ours: one request for each public report.

vLLM, llama.cpp, Ollama, LM Studio and others refused these, answered them with an error of their
own, or died of them. A name is a repository and the number of an issue or a pull request there.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.agents import TOOL, serving
from tests.serve.conftest import Running, post

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER: Any = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "3"}


def parts(*some: Any) -> Any:
    return [{"role": "user", "content": list(some)}]


def called(**fields: Any) -> list[Any]:
    """A conversation with a call, whose fields are changed, and its result."""
    return [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [{**CALL, **fields}]},
        RESULT,
    ]


def arguments(written: Any) -> list[Any]:
    return called(function={"name": "add", "arguments": written})


ANSWERED: list[tuple[str, str, dict[str, Any]]] = [
    # fields in messages and requests
    ("vllm-project/vllm#12864", CHAT, {"messages": [{**USER, "name": "bob"}]}),
    ("vllm-project/vllm#10463", CHAT, {"messages": [{**USER, "id": 1947, "opts": {"v": False}}]}),
    ("odysseus-dev/odysseus#103", CHAT, {"messages": [{**USER, "metadata": {"_db_id": "7"}}]}),
    ("vllm-project/guidellm#208", CHAT, {"messages": [USER], "max_completion_tokens": 35}),
    ("gpustack/gpustack#429", CHAT, {"messages": [USER], "stream_otpions": {"x": True}}),
    ("vllm-project/vllm#15041", CHAT, {"messages": [USER], "request_id": "the same"}),
    ("vllm-project/vllm#55164", CHAT, {"messages": [USER], "stop_token_ids": [999999] * 2000}),
    ("OpenBMB/ChatDev#344", CHAT, {
        "messages": [USER], "stop": None, "logit_bias": {}, "user": "", "n": 1, "top_p": 1.0,
        "frequency_penalty": 0.0, "presence_penalty": 0.0, "max_tokens": 15821,
    }),
    ("mistralai/mistral-inference#122", TEXT, {"prompt": "hi|", "max_tokens": 1}),
    ("mudler/LocalAI#7324", CHAT, {
        "messages": [USER, {**called()[1], "content": ""}, {**RESULT, "content": {"a": [1]}}],
        "repeat_penalty": 0.0, "repeat_last_n": 0, "mirostat": 0, "typical_p": 1.0,
        "n_predict": -1, "cache_prompt": False,
    }),
    # content
    ("janhq/jan#4837", CHAT, {"messages": parts(
        {"type": "text", "text": {"value": "Hola", "annotations": []}})}),
    ("vrgamegirl19/comfyui-vrgamedevgirl#119", CHAT, {"messages": parts(
        {"type": "text", "content": "hi"})}),
    ("cdaein/rename-screenshot#1", CHAT, {"messages": parts({"type": "text", "text": "hi"})}),
    ("llm4s/llm4s#366", "/api/chat", {
        "stream": False, "messages": parts({"type": "text", "text": "hi"})}),
    ("run-llama/llama_index#17555", CHAT, {
        "messages": [*called()[:2], {**RESULT, "content": None}]}),
    ("phodal/auto-dev#175", CHAT, {"messages": [{"role": "system", "content": ""}, USER]}),
    ("nugget/thane-ai-agent#1229", CHAT, {"messages": [
        USER, {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1"}]}),
    ("vllm-project/vllm#48237", CHAT, {
        "messages": [USER, {"role": "assistant", "content": []}, USER]}),
    # calls
    ("ggml-org/llama.cpp#13471", CHAT, {"messages": called()}),
    ("pydantic/pydantic-ai#3406", CHAT, {"messages": called(), "tools": [TOOL]}),
    ("lmstudio-ai/lmstudio-bug-tracker#261", CHAT, {
        "messages": called(), "tools": [TOOL], "parallel_tool_calls": False}),
    ("ggml-org/llama.cpp#12279", CHAT, {"messages": called(id="")}),
    ("sigoden/aichat#1296", CHAT, {"messages": [
        *called(id=None)[:2], {**RESULT, "tool_call_id": None}]}),
    ("vllm-project/vllm#19419", CHAT, {"messages": arguments("")}),
    ("MetaFARS/codex-relay#57", CHAT, {"messages": [*arguments(""), USER, *arguments(" ")]}),
    ("lijunzh/koda#513", CHAT, {"messages": arguments('{"a": 1')}),
    # OpenAI's responses
    ("n8n-io/n8n#26643", "/v1/responses", {
        "input": [{"type": "message", **USER}], "text": {}, "stream": False}),
    ("vllm-project/vllm#28248", "/v1/responses", {"input": [
        {"type": "reasoning", "id": "lol", "summary": [],
         "content": [{"type": "reasoning_text", "text": "Lyrics."}]}, USER]}),
    ("sgl-project/sglang#11924", "/v1/responses", {"input": parts(
        {"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"})}),
    # answers that are begun
    ("ggml-org/llama.cpp#11755", CHAT, {
        "messages": [USER, {"role": "assistant", "content": "Hel"}],
        "continue_final_message": True, "add_generation_prompt": False}),
    ("InternLM/lmdeploy#2798", CHAT, {"messages": [USER, {"role": "assistant", "content": "He"}]}),
    ("vercel/ai#3256", CHAT, {
        "messages": [USER, {"role": "assistant", "content": "He", "prefix": True}]}),
    # log-probabilities and biases
    ("vllm-project/vllm#6521", TEXT, {
        "prompt": "Your answer: Yes", "max_tokens": 0, "echo": False, "logprobs": 1}),
    # formats
    ("xorbitsai/inference#2387", CHAT, {
        "messages": [USER], "response_format": {"type": "json_object"}, "n": 1}),
    ("t59688/arboris-novel#23", CHAT, {
        "messages": [USER], "response_format": {"type": "json_object"}}),
]  # fmt: skip
REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("lmstudio-ai/lmstudio-bug-tracker#377", CHAT, {"messages": {"messages": [USER]}}, "messages"),
    ("vllm-project/vllm#5963", CHAT, {"messages": [USER], "logit_bias": {"AI": -100}},
     "logit_bias"),
    ("vllm-project/vllm#16529", CHAT, {"messages": [USER], "logit_bias": {"191222": -100}},
     "the token 191222 is none of the model's"),
    ("vllm-project/vllm#55974", "/v1/responses",
     {"input": [{"type": "item_reference", "id": "x"}]}, "'item_reference'"),
    ("vllm-project/vllm#55974 (another)", "/v1/responses",
     {"input": [{"type": "mcp_call", "id": "x"}]}, "'mcp_call'"),
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as found:
        yield found


@pytest.mark.parametrize(("path", "body"), [r[1:] for r in ANSWERED], ids=[r[0] for r in ANSWERED])
def test_what_others_refused_is_answered(server: Running, path: str, body: dict[str, Any]) -> None:
    status, said = post(server, json.dumps(body).encode(), path)
    assert status == 200, said
    if path == CHAT:
        message = said["choices"][0]["message"]
        assert isinstance(message["content"], str)  # a null would be refused by others


@pytest.mark.parametrize(
    ("path", "body", "sentence"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_what_others_died_of_is_refused_by_name(
    server: Running, path: str, body: dict[str, Any], sentence: str
) -> None:
    status, said = post(server, json.dumps(body).encode(), path)
    assert status == 400
    assert sentence in said["error"]["message"]
    assert server.scheduler.healthy


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
