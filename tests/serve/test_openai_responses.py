"""The Responses API, by OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from bitquilt.serve.openai_responses import KEPT_RESPONSES, Conversations
from tests.serve.agents import TOOL, add, serving
from tests.serve.conftest import KEY, Running, post

CALLED = '{"id": "%s", "type": "function", "function": {"name": "%s", "arguments": {}}}'
FUNCTION = {"type": "function", **TOOL["function"]}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as found:
        yield found


def test_a_question_and_an_answer(server: Running) -> None:
    reply = server.client.responses.create(model="model", instructions="Be kind.", input="hi")
    assert reply.output_text == "Hello."
    assert [item.type for item in reply.output] == ["reasoning", "message"]
    assert reply.output[0].content[0].text == "Hm."
    assert (reply.status, reply.error) == ("completed", None)
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert reply.usage.output_tokens_details.reasoning_tokens > 0


def test_a_stream_has_every_event_that_the_sdk_knows(server: Running) -> None:
    with server.client.responses.stream(model="model", input="hi") as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events if not event.type.endswith(".delta")]
    begun = ["response.output_item.added", "response.content_part.added"]
    ended = ["response.content_part.done", "response.output_item.done"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        *[*begun, "response.reasoning_text.done", *ended],
        *[*begun, "response.output_text.done", *ended],
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == final.output_text == "Hello."


def test_a_tool_is_called_and_its_result_read(server: Running) -> None:
    create = server.client.responses.create
    asked: list[Any] = [{"role": "user", "content": "1 + 2?"}]
    reply = create(model="model", input=asked, tools=[FUNCTION])
    (call,) = (item for item in reply.output if item.type == "function_call")
    result = add(**json.loads(call.arguments))
    asked += reply.output  # as the SDK's README has it
    asked.append({"type": "function_call_output", "call_id": call.call_id, "output": str(result)})
    assert create(model="model", input=asked, tools=[FUNCTION]).output_text == "It is 3."


def test_a_call_in_a_stream(server: Running) -> None:
    stream = server.client.responses.create(
        model="model", input="1 + 2?", tools=[FUNCTION], stream=True
    )
    events = list(stream)
    (done,) = (e for e in events if e.type == "response.function_call_arguments.done")
    assert json.loads(done.arguments) == {"a": 1, "b": 2}
    assert events[-1].response.output[-1].call_id.startswith("call_")


def test_the_conversation_before_is_kept(server: Running) -> None:
    create = server.client.responses.create
    first = create(model="model", input="1 + 2?", tools=[FUNCTION])
    call = first.output[-1]
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
    then = create(model="model", input=[output], previous_response_id=first.id, tools=[FUNCTION])
    assert then.output_text == "It is 3."
    assert then.previous_response_id == first.id
    unkept = create(model="model", input="hi", store=False)
    with pytest.raises(openai.NotFoundError, match="not kept any more"):
        create(model="model", input="and?", previous_response_id=unkept.id)


def test_few_conversations_are_kept() -> None:
    kept = Conversations()
    for number in range(1000):
        kept.keep(str(number), [{"role": "user", "content": "x" * 50_000}])
    assert len(kept._kept) < 100
    for number in range(1000):
        kept.keep(f"short {number}", [])
    assert len(kept._kept) == KEPT_RESPONSES
    assert kept.before("short 999") == []


def test_structured_and_limited(server: Running) -> None:
    class Person(pydantic.BaseModel):
        name: str
        age: int

    parsed = server.client.responses.parse(model="model", input="Ada?", text_format=Person)
    assert parsed.output_parsed == Person(name="Ada", age=36)
    cut = server.client.responses.create(
        model="model", input="hi", max_output_tokens=3, reasoning={"effort": "none"}
    )
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.output_text == "Hel"
    assert cut.output[-1].status == "incomplete"
    stream = server.client.responses.create(
        model="model", input="hi", max_output_tokens=3, reasoning={"effort": "none"}, stream=True
    )
    done = [event for event in stream if event.type == "response.output_item.done"]
    assert done[-1].item.status == "incomplete"


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ("hi", ["<user>hi"]),
        ([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
         ["<user>hi"]),
        ([{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "hi"}],
         ["<system>Be kind.", "<user>hi"]),
        ([{"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": None},
          {"type": "message", "role": "assistant", "status": "completed", "id": "msg",
           "content": [{"type": "output_text", "text": "a", "annotations": []}]}, "b"],
         ["<assistant>a", "<user>b"]),
        ([{"type": "reasoning", "content": [{"type": "reasoning_text", "text": "t"}]},
          {"type": "function_call", "call_id": "c", "name": "f", "arguments": ""},
          {"type": "function_call", "call_id": "d", "name": "g", "arguments": "{}"},
          {"type": "function_call_output", "call_id": "c",
           "output": [{"type": "input_text", "text": "r"}]}],
         [f"<assistant>t[{CALLED % ('c', 'f')}, {CALLED % ('d', 'g')}]", "<tool>r"]),
    ],
)  # fmt: skip
def test_items_are_messages(server: Running, given: Any, messages: list[str]) -> None:
    """What the model reads, by the tokens that a prompt of the same messages has."""
    body = json.dumps({"input": given, "reasoning": {"effort": "none"}}).encode()
    status, said = post(server, body, "/v1/responses")
    assert status == 200, said
    prompt = "".join(messages) + "<assistant><quiet>|"
    assert said["usage"]["input_tokens"] == len(prompt.encode())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0: this server cannot read"),
        ({"input": [5]}, "input.0: an item is"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "'input_image'"),
        ({"input": []}, "input: there is nothing in it"),
        ({"input": "x", "temperature": "hot"}, "temperature must be a number"),
    ],
)
def test_bad_requests(server: Running, fields: dict[str, Any], sentence: str) -> None:
    status, said = post(server, json.dumps(fields).encode(), "/v1/responses")
    assert status in (400, 404)
    assert sentence in said["error"]["message"]


def test_async(server: Running) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            stream = await client.responses.create(model="model", input="hi", stream=True)
            return [event async for event in stream][-1].response.output_text

    assert asyncio.run(ask()) == "Hello."
