"""Tool calls and reasoning in chat completions."""

from __future__ import annotations

import json
import re

import pytest
from app_under_test import Server, events
from scripted_engine import say

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Say how the weather is.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln 😀"}}\n</tool_call>'
TWO_CALLS = f'Let me see.{CALL}\n<tool_call>{{"name": "now", "arguments": {{}}}}</tool_call>'


@pytest.fixture
def server() -> Server:
    return Server(tool_call_parser="hermes", reasoning_parser="think")


def streamed(chunks: list[dict]) -> dict:
    """The message that a client puts together from deltas."""
    message: dict = {"content": "", "reasoning_content": "", "tool_calls": []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content", "")
            message["reasoning_content"] += delta.get("reasoning_content", "")
            for call in delta.get("tool_calls", []):
                if "id" in call:
                    assert call["index"] == len(message["tool_calls"])
                    assert call["type"] == "function"
                    entry = {"id": call["id"], "name": call["function"]["name"], "arguments": ""}
                    message["tool_calls"].append(entry)
                entry = message["tool_calls"][call["index"]]
                entry["arguments"] += call["function"]["arguments"]
    return message


def test_call(server: Server) -> None:
    server.engine.script = say(CALL)
    choice = server.chat(tools=TOOLS).json["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] is None
    (call,) = message["tool_calls"]
    assert re.fullmatch(r"call_[0-9a-f]{24}", call["id"])
    assert call["type"] == "function"
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Köln 😀"}
    assert "tool weather" in bytes(server.engine.last.prompt).decode()


@pytest.mark.parametrize("step", [1, 5, 500])
def test_stream_equals_whole(server: Server, step: int) -> None:
    server.engine.script, server.engine.tokens_per_step = (
        say(f"<think>\nHm.\n</think>\n\n{TWO_CALLS}"),
        step,
    )
    whole = server.chat(tools=TOOLS).json["choices"][0]
    chunks = events(server.chat(tools=TOOLS, stream=True))
    message = streamed(chunks)
    assert message["content"] == whole["message"]["content"] == "Let me see."
    assert message["reasoning_content"] == whole["message"]["reasoning_content"] == "Hm."
    calls = [call["function"] for call in whole["message"]["tool_calls"]]
    assert [{k: call[k] for k in ("name", "arguments")} for call in message["tool_calls"]] == calls
    assert [call["name"] for call in calls] == ["weather", "now"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_only_one_call_unless_parallel(server: Server) -> None:
    server.engine.script = say(TWO_CALLS)
    message = server.chat(tools=TOOLS, parallel_tool_calls=False).json["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather"]
    chunks = events(server.chat(tools=TOOLS, parallel_tool_calls=False, stream=True))
    assert [call["name"] for call in streamed(chunks)["tool_calls"]] == ["weather"]


def test_plain_answer(server: Server) -> None:
    server.engine.script = say("No need.")
    choice = server.chat(tools=TOOLS).json["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"] == {"role": "assistant", "content": "No need.", "refusal": None}


@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []}])
def test_without_tools_text_is_text(server: Server, fields: dict) -> None:
    server.engine.script = say(CALL)
    choice = server.chat(**fields).json["choices"][0]
    assert choice["message"]["content"] == CALL
    assert choice["finish_reason"] == "stop"
    assert "tool weather" not in bytes(server.engine.last.prompt).decode()


def test_cut_off_call_is_kept(server: Server) -> None:
    server.engine.script = say(CALL)
    choice = server.chat(tools=TOOLS, max_tokens=60).json["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"].startswith('{"city"')


def test_conversation_with_calls_and_results(server: Server) -> None:
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function",
             "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sunny"},
    ]  # fmt: skip
    assert server.chat(messages=messages, tools=TOOLS, max_tokens=1).status_code == 200
    shown = server.template.seen
    assert shown[1]["tool_calls"][0]["function"]["name"] == "weather"
    assert shown[2]["tool_call_id"] == "c1"


def test_marks_that_are_special_tokens_are_seen() -> None:
    server = Server(tool_call_parser="mistral")
    server.chat(tools=TOOLS, max_tokens=1)
    assert not server.engine.last.sampling.skip_special_tokens
    server.chat(max_tokens=1)
    assert server.engine.last.sampling.skip_special_tokens


class TestReasoning:
    def test_hidden_on_demand(self, server: Server) -> None:
        server.engine.script = say("<think>Hm.</think>Hi")
        message = server.chat(include_reasoning=False).json["choices"][0]["message"]
        assert message == {"role": "assistant", "content": "Hi", "refusal": None}

    def test_begins_inside_when_the_prompt_says_so(self, server: Server) -> None:
        server.engine.script = say("Hm.</think>Hi")
        message = server.chat(chat_template_kwargs={"end": "<think>"}).json["choices"][0]["message"]
        assert message["content"] == "Hm.</think>Hi"
        server.template.ending = "<think>\n"
        message = server.chat().json["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Hm.", "Hi")

    def test_effort_is_told_to_the_template(self, server: Server) -> None:
        server.chat(reasoning_effort="low", max_tokens=1)
        assert "reasoning_effort=low" in bytes(server.engine.last.prompt).decode()

    def test_earlier_reasoning_is_told_to_the_template(self, server: Server) -> None:
        for name in ("reasoning", "reasoning_content"):
            server.chat(messages=[{"role": "assistant", "content": "x", name: "y"}], max_tokens=1)
            assert server.template.seen[0]["reasoning_content"] == "y"


def tool(**function: object) -> dict:
    return {"type": "function", "function": {"name": "f", **function}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "retrieval", "function": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [tool(name="")]}, "tools[0].function.name"),
        ({"tools": [tool(name="x" * 257)]}, "tools[0].function.name"),
        ({"tools": [tool(parameters=[1])]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"a": "x" * 65536})]}, "tools[0].function.parameters"),
        ({"tools": [tool()] * 129}, "tools"),
        ({"tools": [tool()] * 20_000}, "tools"),
        ({"tools": "x"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes", "tools": [tool()]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [tool()]},
         "tool_choice"),
    ],
)  # fmt: skip
def test_refused(server: Server, fields: dict, param: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], **fields}
    assert server.refusal("/v1/chat/completions", body)["param"] == param


def test_128_tools(server: Server) -> None:
    tools = [tool(name=f"f{i}") for i in range(128)]
    body = {"messages": [{"role": "user", "content": "x"}], "tools": tools}
    error = server.refusal("/v1/chat/completions", body)
    assert error["code"] == "context_length_exceeded"
