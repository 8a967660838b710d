"""/v1/messages and /v1/messages/count_tokens over a scripted engine."""

from __future__ import annotations

from typing import Any

import pytest
from app_under_test import Server
from scripted_engine import say
from test_responses import named_events

from octavo.errors import EngineFaultError, QueueFullError

TOOLS = [{"name": "weather", "description": "d", "input_schema": {"type": "object"}}]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
EVERYTHING = f"<think>Hm.</think>Let me see 😀.{CALL}{CALL}"


@pytest.fixture
def server() -> Server:
    return Server(tool_call_parser="hermes", reasoning_parser="think")


def ask(server: Server, path: str = "/v1/messages", **body: Any) -> Any:
    body = {"max_tokens": 200, "messages": [{"role": "user", "content": "hi"}], **body}
    return server.post(path, body)


def test_shape(server: Server) -> None:
    server.engine.script, server.engine.cached_tokens = say("Hi!"), 5
    body = ask(server, system="Be brief.").json
    assert body["id"].startswith("msg_")
    prompt = "system: Be brief.\nuser: hi\nassistant:\n"
    assert bytes(server.engine.last.prompt).decode() == prompt
    del body["id"]
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": "org/fake",
        "content": [{"type": "text", "text": "Hi!"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": len(prompt) - 5,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 5,
            "output_tokens": 4,
        },
    }


def test_thinking_text_and_tools(server: Server) -> None:
    server.engine.script = say(EVERYTHING)
    body = ask(server, tools=TOOLS).json
    assert [block["type"] for block in body["content"]] == [
        "thinking",
        "text",
        "tool_use",
        "tool_use",
    ]
    assert body["content"][0]["thinking"] == "Hm."
    assert body["content"][1]["text"] == "Let me see 😀."
    assert body["content"][2]["input"] == {"city": "Köln"}
    assert body["stop_reason"] == "tool_use"


@pytest.mark.parametrize("step", [1, 7, 500])
def test_stream_tells_what_the_whole_says(server: Server, step: int) -> None:
    server.engine.script, server.engine.tokens_per_step = say(EVERYTHING), step
    whole = ask(server, tools=TOOLS).json
    stream = named_events(ask(server, tools=TOOLS, stream=True))
    assert stream[0]["type"] == "message_start"
    assert stream[0]["message"]["content"] == []
    assert [stream[-2]["type"], stream[-1]["type"]] == ["message_delta", "message_stop"]
    assert stream[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert stream[-2]["usage"] == whole["usage"]
    for index, block in enumerate(whole["content"]):
        mine = [event for event in stream if event.get("index") == index]
        assert mine[0]["type"] == "content_block_start"
        assert mine[0]["content_block"]["type"] == block["type"]
        assert mine[-1]["type"] == "content_block_stop"
        deltas = [event["delta"] for event in mine[1:-1]]
        texts = [next(v for k, v in delta.items() if k != "type") for delta in deltas]
        said = {"thinking": "Hm.", "text": "Let me see 😀.", "tool_use": '{"city": "Köln"}'}
        assert "".join(texts) == said[block["type"]]


def test_reasons_to_stop(server: Server) -> None:
    server.engine.script = say("one STOP two")
    body = ask(server, stop_sequences=["STOP"]).json
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "STOP")
    assert body["content"][0]["text"] == "one "
    assert ask(server, max_tokens=3).json["stop_reason"] == "max_tokens"


def test_conversation(server: Server) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1",
             "content": [{"type": "text", "text": "hot"}]},
            {"type": "text", "text": "And now?"}]},
    ]  # fmt: skip
    assert ask(server, messages=messages, max_tokens=1).status_code == 200
    seen = server.template.seen
    assert [m["role"] for m in seen] == ["user", "assistant", "tool", "user"]
    assert seen[1]["reasoning_content"] == "Hm."
    assert seen[1]["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": '{"city":"Rome"}',
    }
    assert seen[2]["tool_call_id"] == "t1"


def test_thinking_is_told_to_the_template(server: Server) -> None:
    ask(server, thinking={"type": "disabled"}, max_tokens=1)
    assert "enable_thinking=False" in bytes(server.engine.last.prompt).decode()


def test_count_tokens(server: Server) -> None:
    count = ask(server, "/v1/messages/count_tokens", system="x", tools=TOOLS).json
    ask(server, system="x", tools=TOOLS, max_tokens=1)
    assert count == {"input_tokens": len(server.engine.last.prompt)}


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": None},
        {"max_tokens": 0},
        {"max_tokens": 10**9},
        {"messages": []},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "x"}]}]},
        {"tools": [{"name": "x", "type": "bash_20250124"}]},
        {"tools": [{"name": "x"}] * 129},
        {"tool_choice": {"type": "tool"}, "tools": TOOLS},
        {"tool_choice": {"type": "sometimes"}},
        {"stop_sequences": ["x"] * 17},
        {"temperature": -1},
    ],
)
def test_refused(server: Server, fields: dict) -> None:
    result = ask(server, **fields)
    assert result.status_code == 400
    assert set(result.json) == {"type", "error"}
    assert result.json["type"] == "error"
    assert set(result.json["error"]) == {"type", "message"}
    assert result.json["error"]["type"] == "invalid_request_error"
    assert not server.engine.submissions


def test_errors_have_their_own_shape(server: Server) -> None:
    locked = Server(api_key=("k",))
    refused = ask(locked)
    assert refused.status_code == 401
    assert refused.json["error"]["type"] == "authentication_error"
    unknown = ask(server, model="other")
    assert unknown.json["error"]["type"] == "not_found_error"
    server.engine.fail_at, server.engine.failure = 0, QueueFullError("Too many requests wait.")
    full = ask(server, stream=True)
    assert full.status_code == 429
    assert full.json["error"]["type"] == "rate_limit_error"


def test_fault_inside_a_stream(server: Server) -> None:
    server.engine.fail_at, server.engine.failure = 2, EngineFaultError("The engine failed.")
    stream = named_events(ask(server, stream=True))
    assert stream[-1] == {
        "type": "error",
        "error": {"type": "api_error", "message": "The engine failed."},
    }


def test_idle_streams_get_pings(server: Server) -> None:
    server.engine.script, server.engine.idle_gets = say("Hi"), 2
    stream = named_events(ask(server, stream=True))
    assert [event["type"] for event in stream[:3]] == ["message_start", "ping", "ping"]
