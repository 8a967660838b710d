"""Structured output of the demo model over HTTP, by the openai package."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Literal

import openai
import pytest
from live_server import LiveServer, live_server
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from collections.abc import Iterator

QUESTION = [{"role": "user", "content": "Paris: how many people live there? Answer as JSON."}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 20},
                    "unit": {"enum": ["celsius", "fahrenheit"]},
                },
                "required": ["city", "unit"],
                "additionalProperties": False,
            },
        },
    }
]


class City(BaseModel):
    name: str = Field(max_length=20)
    country: Literal["France", "Germany"]
    population: int = Field(ge=0, le=99_999_999)
    rivers: list[str] = Field(max_length=2)


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_parse(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="smollm2", messages=QUESTION, response_format=City, max_tokens=300, seed=1
    )
    assert isinstance(answer.choices[0].message.parsed, City)
    assert answer.choices[0].finish_reason == "stop"


def test_json_object_in_a_stream(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="smollm2",
        messages=QUESTION,
        response_format={"type": "json_object"},
        max_tokens=200,
        temperature=0,
        stream=True,
    )
    parts = [choice for chunk in chunks for choice in chunk.choices]
    text = "".join(part.delta.content or "" for part in parts)
    if parts[-1].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    else:
        assert text.startswith("{")


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_forced_tool_call(client: openai.OpenAI, choice: object) -> None:
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=TOOLS,
        tool_choice=choice,
        parallel_tool_calls=False,
        max_tokens=100,
        temperature=0,
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments).keys() == {"city", "unit"}


def test_choices_regex_and_grammar(client: openai.OpenAI) -> None:
    for outputs, expected in (
        ({"choice": ["Paris", "Berlin"]}, {"Paris", "Berlin"}),
        ({"regex": "[Yy]es|[Nn]o"}, {"Yes", "yes", "No", "no"}),
        ({"grammar": 'root ::= "A" | "B"'}, {"A", "B"}),
    ):
        answer = client.chat.completions.create(
            model="smollm2", messages=QUESTION, n=3, extra_body={"structured_outputs": outputs}
        )
        assert {choice.message.content for choice in answer.choices} <= expected


def test_a_bad_schema_is_refused_and_nobody_else_notices(
    server: LiveServer, client: openai.OpenAI
) -> None:
    free = server.metric("kv_cache_free_blocks")
    texts: list[str] = []

    def plain() -> None:
        answer = client.completions.create(
            model="smollm2", prompt="Once upon a time", max_tokens=60, temperature=0
        )
        texts.append(answer.choices[0].text)

    plain()
    beside = threading.Thread(target=plain)
    beside.start()
    with pytest.raises(openai.BadRequestError, match="Unimplemented keys"):
        client.chat.completions.create(
            model="smollm2",
            messages=QUESTION,
            extra_body={"structured_outputs": {"json": {"not": {}}}},
        )
    beside.join()
    assert texts[0] == texts[1]
    server.wait_idle(free)


def test_a_client_that_leaves_frees_its_blocks(server: LiveServer, client: openai.OpenAI) -> None:
    free = server.metric("kv_cache_free_blocks")
    stream = client.chat.completions.create(
        model="smollm2",
        messages=QUESTION,
        n=2,
        extra_body={"structured_outputs": {"regex": "(a|b){500,900}"}},
        stream=True,
    )
    for _ in zip(stream, range(6), strict=False):
        pass
    stream.close()
    server.wait_idle(free)
