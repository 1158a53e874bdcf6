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


def tool(parameters: Any, name: str = "add") -> Any:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def forced(**properties: Any) -> dict[str, Any]:
    """A request that has to be answered by a call, with arguments of this schema."""
    schema = {"type": "object", "properties": properties}
    return {"messages": [USER], "tools": [tool(schema)], "tool_choice": "required"}


PERSON = {
    "type": "object",
    "properties": {"p": {"$ref": "#/$defs/P"}},
    "$defs": {"P": {"type": "object", "properties": {"name": {"type": "string"}}}},
}
SERVER_TOOLS = [{"type": "web_search"}, {"type": "custom", "name": "patch"}, {"type": "shell"}]

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
    # nothing, where others have something
    ("containers/ramalama#2465", CHAT, {"messages": [USER], "model": None, "max_tokens": None}),
    ("langchain-ai/langchain#28753", "/api/chat", {
        "messages": [USER], "format": "", "options": None, "tools": None, "stream": False}),
    ("evalstate/fast-agent#781", CHAT, {"messages": [USER], "tools": []}),
    ("vllm-project/vllm#9426", CHAT, {"messages": [USER], "tool_choice": "none"}),
    # settings at the edge of what numbers can hold
    ("vllm-project/vllm#1623", CHAT, {"messages": [USER], "temperature": 1e-4, "top_p": 1e-4}),
    ("vllm-project/vllm#890", CHAT, {"messages": [USER], "temperature": 1e-300}),
    ("NVIDIA-NeMo/Export-Deploy#652", CHAT, {
        "messages": [USER], "max_tokens": 10**9, "top_p": 0.9999999, "temperature": 1e-7}),
    ("local-inference-lab/vllm#264", TEXT, {"prompt": "hi", "prompt_logprobs": -1}),
    ("vllm-project/vllm#44968", CHAT, {
        "messages": [USER], "stop_token_ids": [151645], "min_tokens": 5}),
    ("ollama/ollama-python#157", "/api/chat", {
        "messages": [USER], "keep_alive": True, "stream": False}),
    # formats and tools
    ("vllm-project/vllm#4597", CHAT, {"messages": [USER], "guided_choice": ["yes", "no"]}),
    ("vllm-project/vllm#19270", CHAT, {"messages": [USER], "guided_regex": "foo**"}),
    ("elie222/rakazo#851", CHAT, {
        "messages": [USER], "tools": [tool({"type": "object"})], "tool_choice": "required"}),
    ("sipeed/picoclaw#2139", CHAT, {
        "messages": [USER], "tool_choice": "required",
        "tools": [tool({"type": "object", "properties": None, "required": None})]}),
    ("github/app#2724", CHAT, forced(input={"description": "anything"})),
    ("bnb-chain/bnbchain-mcp#68", CHAT, forced(a={"type": "array"})),
    ("lmstudio-ai/lmstudio-bug-tracker#738", CHAT, {
        "messages": [USER], "tools": [tool(PERSON)], "tool_choice": "required"}),
    ("ggml-org/llama.cpp#26596", CHAT, forced(
        s={"type": "string", "minLength": 1, "maxLength": 65536})),
    ("ggml-org/llama.cpp#25746", CHAT, forced(
        o={"type": "object", "properties": {
            "s": {"type": "string", "pattern": "^[a-z]+$"},
            "t": {"type": "string", "maxLength": 2000}}})),
    ("ggml-org/llama.cpp#25923", CHAT, forced()),
    ("openai/codex#10635", "/v1/responses", {
        "input": "hi", "tools": [*SERVER_TOOLS, {"type": "function", **tool({})["function"]}]}),
    ("ggml-org/llama.cpp#23465", "/v1/responses", {"input": [
        {"role": "user", "content": "hi"},
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [
            {"type": "output_text", "text": "3"}]}]}),
    ("vllm-project/vllm#9312", CHAT, {
        "messages": [USER], "functions": [{"name": "add"}], "function_call": {"name": "add"}}),
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
    ("vllm-project/vllm#17248", CHAT, {
        "messages": [USER], "guided_json": {"type": "object", "properties": {
            "a": {"type": "strin"}}}}, "the JSON schema cannot be followed: Invalid type: strin"),
    ("vllm-project/vllm#17313", CHAT, {"messages": [USER], "guided_regex": "(a"},
     "the regular expression cannot be followed"),
    ("abetlen/llama-cpp-python#983", CHAT, {
        "messages": [{**USER, "content": "x" * 100_000}]}, "the model can read only 100,000"),
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


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"messages": [{"role": "user", "content": "an emoji \\ud83d"}]}', 200),
        ('\ufeff{"messages": [{"role": "user", "content": "hi"}]}'.encode(), 200),
        ('{"messages": [{"role": "user", "content": "hi"}]}'.encode("utf-16"), 200),
        ('{"messages": [{"role": "user", "content": "你好"}]}'.encode("gbk"), 400),
        (b'{"messages": [{"role": "user", "content": "\\u0041"}], "x": ' + b"[" * 9999, 400),
        (b'{"messages": [{"role": "user", "content": "\\u0041"}], "top_p": NaN}', 400),
    ],
    ids=[
        "HKUDS/nanobot#4952",
        "byte order mark",
        "utf-16",
        "ggml-org/llama.cpp#6396",
        "deep",
        "NaN",
    ],
)
def test_what_windows_and_cut_texts_bring(server: Running, body: bytes, status: int) -> None:
    found, said = post(server, body)
    assert found == status, said
    assert server.scheduler.healthy


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [("Content-Length", "1000000000000", 413), ("Content-Encoding", "gzip", 415)],
)
def test_a_body_that_is_not_read_is_refused_before_it_comes(
    server: Running, header: str, value: str, status: int
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.putrequest("POST", CHAT)
    for name, said in (("Authorization", "Bearer secret"), (header, value)):
        connection.putheader(name, said)
    connection.endheaders()
    assert connection.getresponse().status == status
    connection.close()


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
