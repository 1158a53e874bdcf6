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
    # calls that broke off, and messages as other clients keep them
    ("lobehub/lobehub#14139", CHAT, {"messages": called(function={"name": None})}),
    ("open-webui/open-webui#29690", CHAT, {
        "messages": called(function={"name": None, "arguments": "{}"}), "tools": [TOOL]}),
    ("endolith/open-interpreter#254", CHAT, {"messages": called(function=None)}),
    ("vllm-project/vllm#12937", CHAT, {
        "messages": [USER, {"role": "assistant", "content": "a", "tool_calls": []}, USER]}),
    ("vllm-project/vllm#12788", CHAT, {
        "messages": [USER, {"role": "assistant", "content": "a", "tool_calls": None}, USER]}),
    ("vllm-project/vllm#21089", CHAT, {
        "messages": [USER, {"role": "assistant", "content": ""}, USER]}),
    ("0xPlaygrounds/rig#1362", CHAT, {"messages": [
        *parts({"type": "text", "text": "5 + 3?"}),
        {"role": "assistant", "content": [], "tool_calls": [CALL]},
        {**RESULT, "content": [{"type": "text", "text": "8"}]}]}),
    ("abetlen/llama-cpp-python#1805", CHAT, {"messages": [
        {"role": "system", "content": "Be kind."}, USER,
        {"role": "assistant", "tool_calls": [{**CALL, "id": "call__0_cmpl-c359a11f"}]},
        {**RESULT, "tool_call_id": "call__0_cmpl-c359a11f"}]}),
    ("raullenchai/Rapid-MLX#1543", CHAT, {"messages": [
        {"role": "system", "content": "Be terse."}, USER,
        {"role": "assistant", "content": "Hello."}, {"role": "system", "content": "BLUE"}, USER]}),
    # formats
    ("ggml-org/llama.cpp#7149", CHAT, {
        "messages": [USER], "n_predict": 512, "response_format": {"type": "json_object"},
        "json_schema": PERSON}),
    ("huggingface/text-generation-inference#1966", CHAT, {
        "messages": [USER], "response_format": {"type": "json_object", "value": PERSON}}),
    ("huggingface/text-generation-inference#1858", CHAT, {
        "messages": [USER], "grammar": {"type": "json", "value": PERSON}}),
    ("huggingface/huggingface_hub#2383", CHAT, {
        "messages": [USER], "response_format": {"type": "regex", "value": "Hel+o\\."}}),
    ("noonghunna/club-3090#45", CHAT, forced(r={
        "type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {}})),
    ("ggml-org/llama.cpp#14227", CHAT, {
        "messages": [USER], "tool_choice": "required", "tools": [{"type": "function", "function": {
            "type": "function", "name": "whois", "parameters": {
                "type": "object", "required": ["ip"],
                "properties": {"ip": {"title": "Ip", "description": ""}}}}}]}),
    ("ggml-org/llama.cpp#21327", CHAT, forced(
        domain={"type": ["string", "null"]}, kind={"enum": ["light", "fan"]})),
    ("ggml-org/llama.cpp#7863", CHAT, forced(
        a={"type": ["array", "null"], "items": {"type": "string"}})),
    ("pwilkin/llama.cpp#8", CHAT, forced(n={"type": ["integer", "string", "null"]})),
    ("ggml-org/llama.cpp#22240", CHAT, forced(
        type={"anyOf": [{"const": "decision"}, {"const": "fact"}, {"type": "null"}]})),
    # names and choices of tools
    ("openai/codex#8174", CHAT, {
        "messages": [USER], "tools": [tool({}, "calendar.respondToEvent")],
        "tool_choice": "required"}),
    ("github/copilot-cli#1879", CHAT, {
        "messages": [USER], "tools": [tool({}, "user-profile/update")],
        "tool_choice": "required"}),
    ("docker/mcp-gateway#228", CHAT, {
        "messages": [USER], "tools": [tool({}, "context7:get-library-docs")],
        "tool_choice": "required"}),
    ("NetApp/netapp-dataops-toolkit#38", CHAT, {
        "messages": [USER], "tools": [tool({}, "Create CIFS Share")], "tool_choice": "required"}),
    ("lmstudio-ai/lmstudio-bug-tracker#670", CHAT, {
        "messages": [USER], "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "add"}}}),
    # settings
    ("smg-project/smg#2555", CHAT, {
        "messages": [USER],
        "stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
    ("SillyTavern/SillyTavern#1844", CHAT, {
        "messages": [USER], "stop": [f"\nName {n}:" for n in range(60)]}),
    ("BerriAI/litellm#18921", TEXT, {"prompt": "hi|", "stop": [f"<{n}>" for n in range(12)]}),
    ("NVIDIA/TensorRT-LLM#17172", CHAT, {"messages": [USER], "seed": 2**64 - 1}),
    ("ggml-org/llama.cpp#2002", CHAT, {"messages": [USER], "seed": 2**32 - 1}),
    ("inferencerlabs/inferencer-feedback#209", CHAT, {"messages": [USER], "thinking": True}),
    ("jundot/omlx#56", CHAT, {"messages": [USER], "thinking": {"type": "adaptive"}}),
    # Ollama's
    ("BerriAI/litellm#11483", "/api/generate", {
        "prompt": "hi", "images": [], "stream": False,
        "options": {"temperature": 0, "keep_alive": -1}}),
    ("run-llama/llama_index#9551", "/api/chat", {
        "messages": [USER], "options": {"formatted": True}, "stream": False}),
    ("BerriAI/litellm#1850", "/api/generate", {
        "prompt": "hi", "options": {"format": "json"}, "stream": False}),
    # OpenAI's responses
    ("MiaAI-Lab/DeepSeek-v4-Flash-DSpark-2x-DGX-Spark#138", "/v1/responses", {"input": [
        {"role": "system", "content": "Current date: 2026-08-25\n"},
        *parts({"type": "input_text", "text": "hello"}),
        {"role": "assistant", "content": [{"type": "output_text", "text": "Hello there! 👋"}]},
        *parts({"type": "input_text", "text": "your version"})]}),
    ("BerriAI/litellm#13420", "/v1/responses", {"input": [USER, {
        "type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": None}],
        "content": "kept as a text", "encrypted_content": None, "status": None}, USER]}),
    ("continuedev/continue#11138", "/v1/responses", {
        "input": [USER, {"type": "reasoning", "id": "rs_06c6", "summary": []}]}),
    ("cubezhao/ai-tools-mng#79", "/v1/responses", {"input": "Hello!", "instructions": None}),
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
    ("vllm-project/vllm#17313 (in a tool)", CHAT,
     forced(s={"type": "string", "pattern": "^(?!.*foo).*$"}),
     "look-around, including look-ahead and look-behind, is not supported"),
    ("vllm-project/vllm#4529", CHAT, {"messages": [USER], "seed": 2**64}, "seed"),
    ("ggml-org/llama.cpp#23463", CHAT, {
        "messages": [USER], "response_format": {"type": "json_schema"}},
     "response_format.json_schema.schema is missing"),
    ("ollama/ollama#8126", "/api/chat", {"messages": [USER], "format": "xml"},
     'format: \'xml\' is not "json", nor a JSON schema'),
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
    error = said["error"]
    assert sentence in (error if path.startswith("/api/") else error["message"])
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
