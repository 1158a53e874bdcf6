"""Client libraries, the real packages: each does its README's example against a scripted model.

Those of OpenAI and Ollama are among the tools for developers. The others are large (megabytes with
what they need, and seconds to import: litellm 355 and 3.9, langchain-openai 48 and 1.4,
pydantic-ai-slim 37 and 0.7, openai-agents 37 and 1.8, instructor 11 and 0), so a test of one is
skipped where it is not installed. ``make clients`` installs and tests them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from bitquilt.demo import path as model_path
from tests.serve.agents import TOOL, add, serving
from tests.serve.conftest import KEY, Running

USER: Any = [{"role": "user", "content": "What is 1 + 2?"}]


class Person(pydantic.BaseModel):
    """Somebody."""

    name: str
    age: int


ADA = Person(name="Ada", age=36)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as found:
        yield found


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No client asks anybody else, for prices or to report what was done."""
    for name, value in {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "LANGSMITH_TRACING": "false",
    }.items():
        monkeypatch.setenv(name, value)


def test_openai_async(server: Running) -> None:
    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            create = client.chat.completions.create
            whole = await create(model="model", messages=USER)
            stream = await create(model="model", messages=USER, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return whole.choices[0].message.content or "", text

    assert asyncio.run(ask()) == ("Hello.", "Hello.")


def test_openai_stream_helper_and_tool_runner(server: Running) -> None:
    with server.client.chat.completions.stream(
        model="model", messages=USER, tools=[TOOL]
    ) as stream:
        kinds = {event.type for event in stream}
        (choice,) = stream.get_final_completion().choices
    assert "tool_calls.function.arguments.done" in kinds
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls[0].function.name == "add"


def test_openai_parses_tools_and_formats(server: Running) -> None:
    parse = server.client.chat.completions.parse
    messages: Any = [{"role": "user", "content": "Ada?"}]
    assert (
        parse(model="model", messages=messages, response_format=Person).choices[0].message.parsed
        == ADA
    )
    reply = parse(model="model", messages=messages, tools=[openai.pydantic_function_tool(Person)])
    (call,) = reply.choices[0].message.tool_calls
    assert call.function.parsed_arguments == ADA


def test_litellm(server: Running) -> None:
    litellm = pytest.importorskip("litellm")
    ask: Any = {"messages": USER, "api_key": KEY}
    openai_like = {"model": "openai/model", "api_base": f"{server.url}/v1"}
    for where in (openai_like, {"model": "hosted_vllm/model", "api_base": f"{server.url}/v1"}):
        reply = litellm.completion(**ask, **where)
        assert reply.choices[0].message.content == "Hello."
        assert reply.choices[0].message.reasoning_content == "Hm."
        chunks = litellm.completion(**ask, **where, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello."
        called = litellm.completion(**ask, **where, tools=[TOOL], tool_choice="auto")
        message = called.choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "3"}
        told = {**ask, "messages": [*USER, message, result]}
        assert litellm.completion(**told, **where).choices[0].message.content == "It is 3."
    headers = {"Authorization": f"Bearer {KEY}"}
    local = {"model": "ollama_chat/model", "api_base": server.url, "extra_headers": headers}
    assert litellm.completion(messages=USER, **local).choices[0].message.content == "Hello."


def test_langchain(server: Running) -> None:
    langchain = pytest.importorskip("langchain_openai")
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool

    for api in ({}, {"use_responses_api": True}):
        model = langchain.ChatOpenAI(model="model", base_url=f"{server.url}/v1", api_key=KEY, **api)
        assert model.invoke("hi").text == "Hello."
        assert "".join(chunk.text for chunk in model.stream("hi")) == "Hello."
        assert model.batch(["hi", "hi"])[1].text == "Hello."
        bound = model.bind_tools([tool(add)])
        messages: list[Any] = [HumanMessage("What is 1 + 2?")]
        messages.append(bound.invoke(messages))
        (call,) = messages[-1].tool_calls
        assert call["args"] == {"a": 1, "b": 2}
        messages.append(ToolMessage("3", tool_call_id=call["id"]))
        assert bound.invoke(messages).text == "It is 3."
    plain = langchain.ChatOpenAI(model="model", base_url=f"{server.url}/v1", api_key=KEY)
    for method in ("json_schema", "function_calling", "json_mode"):
        assert plain.with_structured_output(Person, method=method).invoke("Ada?") == ADA
    text = langchain.OpenAI(model="model", base_url=f"{server.url}/v1", api_key=KEY)
    assert text.invoke("hi|").endswith("Hello.")
    assert len(text.generate(["hi|", "ho|"]).generations) == 2


def test_instructor(server: Running) -> None:
    instructor = pytest.importorskip("instructor")
    for mode in ("TOOLS", "JSON", "JSON_SCHEMA"):
        client = instructor.from_openai(server.client, mode=instructor.Mode[mode])
        found = client.chat.completions.create(
            model="model",
            messages=[{"role": "user", "content": "Ada?"}],
            response_model=Person,
            extra_body={"chat_template_kwargs": {"enable_thinking": False}},
        )
        assert found.model_dump() == ADA.model_dump(), mode


def test_pydantic_ai(server: Running) -> None:
    ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    def named(kind: Any) -> Any:
        return kind("model", provider=OpenAIProvider(base_url=f"{server.url}/v1", api_key=KEY))

    async def streamed(model: Any) -> str:
        async with ai.Agent(model).run_stream("hi") as result:
            return [text async for text in result.stream_text()][-1]

    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        model = named(kind)
        assert ai.Agent(model, instructions="Be kind.").run_sync("hi").output == "Hello."
        agent = ai.Agent(model, tools=[add])
        assert agent.run_sync("What is 1 + 2?").output == "It is 3."
        assert ai.Agent(model, output_type=Person).run_sync("Ada?").output == ADA
        # its connections belong to the event loop that made them
        assert asyncio.run(streamed(named(kind))) == "Hello."


def test_openai_agents(server: Running) -> None:
    agents = pytest.importorskip("agents")

    async def run() -> list[str]:
        agents.set_tracing_disabled(True)
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY)
        found = []
        for kind in (agents.OpenAIResponsesModel, agents.OpenAIChatCompletionsModel):
            model = kind(model="model", openai_client=client)
            agent = agents.Agent(
                name="adder", model=model, instructions="Add.", tools=[agents.function_tool(add)]
            )
            found.append((await agents.Runner.run(agent, "What is 1 + 2?")).final_output)
            stream = agents.Runner.run_streamed(agent, "What is 1 + 2?")
            async for _ in stream.stream_events():
                pass
            found.append(stream.final_output)
        return found

    assert asyncio.run(run()) == ["It is 3."] * 4


def test_lm_evaluation_harness(demo: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several choices by log-probabilities, and text up to a stop, over HTTP."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    where = {"model": "demo", "num_concurrent": 2, "max_retries": 1}
    completions: Any = {"base_url": f"{demo.url}/v1/completions", **where}
    here: Any = {"tokenizer_backend": "huggingface", "tokenizer": str(model_path())}
    plain = LocalCompletionsAPI(**completions, **here)
    choices = [Instance("loglikelihood", {}, ("12 + 7 =", f" {n}"), 0) for n in ("19", "cat")]
    (right, _), (wrong, _) = plain.loglikelihood(choices)
    assert wrong < right < 0
    started = LocalCompletionsAPI(**completions, **here, add_bos_token=True).loglikelihood(choices)
    there: Any = {"tokenizer_backend": "remote", "auth_token": KEY}
    for add_bos in (True, False):  # the server adds a start token to texts that have none
        for tokenizer in (here, there):
            texts: Any = {"tokenized_requests": False, "add_bos_token": add_bos, **tokenizer}
            found = LocalCompletionsAPI(**completions, **texts).loglikelihood(choices)
            assert [sure for _, sure in found] == [sure for _, sure in started]
            sums = [total for total, _ in started]
            assert [total for total, _ in found] == pytest.approx(sums, abs=1e-3)
    assert LocalCompletionsAPI(**completions, auth_token=KEY).tokenizer_backend == "remote"
    until = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    (text,) = plain.generate_until([Instance("generate_until", {}, ("1 2 3 4", until), 0)])
    assert text
    assert "\n" not in text
    chat = LocalChatCompletion(base_url=f"{demo.url}/v1/chat/completions", **where)
    asked = [{"role": "user", "content": "What is 347 + 585?"}]
    chat_until = {"until": ["never"], "max_gen_toks": 500, "do_sample": False}
    request = Instance("generate_until", {}, (chat.apply_chat_template(asked), chat_until), 0)
    assert chat.generate_until([request]) == ["\\boxed{932}"]
