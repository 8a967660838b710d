"""/v1/responses over a scripted engine."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from app_under_test import Server
from scripted_engine import say

from octavo.errors import EngineFaultError
from octavo.server.response_store import MAX_BYTES, MAX_RESPONSES, ResponseStore, StoredResponse

TOOLS = [{"type": "function", "name": "weather", "parameters": {"type": "object"}}]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
EVERYTHING = f"<think>Hm.</think>Let me see 😀.{CALL}{CALL}"


@pytest.fixture
def server() -> Server:
    return Server(tool_call_parser="hermes", reasoning_parser="think")


def ask(server: Server, **body: Any) -> dict[str, Any]:
    result = server.post("/v1/responses", {"input": "hi", **body})
    assert result.status_code == 200, result.text
    return result.json


def named_events(result: Any) -> list[dict[str, Any]]:
    """The data of named events; framing, names and numbers are checked."""
    assert result.headers["Content-Type"].startswith("text/event-stream")
    blocks = result.text.split("\n\n")
    assert blocks.pop() == ""
    found = []
    for block in blocks:
        name, data = block.split("\n")
        found.append(msgspec.json.decode(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_shape(server: Server) -> None:
    server.engine.script, server.engine.cached_tokens = say("Hi!"), 2
    body = ask(server, instructions="Be brief.", metadata={"a": "b"}, temperature=0.5)
    assert body["id"].startswith("resp_")
    assert body["object"] == "response"
    assert body["status"] == "completed"
    (item,) = body["output"]
    assert item["type"] == "message"
    assert item["role"] == "assistant"
    assert item["content"] == [
        {"type": "output_text", "text": "Hi!", "annotations": [], "logprobs": []}
    ]
    prompt = "system: Be brief.\nuser: hi\nassistant:\n"
    assert bytes(server.engine.last.prompt).decode() == prompt
    assert body["usage"] == {
        "input_tokens": len(prompt),
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": len(prompt) + 4,
    }
    assert body["metadata"] == {"a": "b"}
    assert body["temperature"] == 0.5


def test_reasoning_text_and_calls(server: Server) -> None:
    server.engine.script = say(EVERYTHING)
    body = ask(server, tools=TOOLS)
    kinds = [item["type"] for item in body["output"]]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    assert body["output"][0]["content"][0] == {"type": "reasoning_text", "text": "Hm."}
    assert body["output"][1]["content"][0]["text"] == "Let me see 😀."
    assert json.loads(body["output"][2]["arguments"]) == {"city": "Köln"}
    assert body["output"][2]["call_id"] != body["output"][3]["call_id"]
    assert {item["status"] for item in body["output"]} == {"completed"}


@pytest.mark.parametrize("step", [1, 7, 500])
def test_stream_tells_what_the_whole_says(server: Server, step: int) -> None:
    server.engine.script, server.engine.tokens_per_step = say(EVERYTHING), step
    whole = ask(server, tools=TOOLS)
    stream = named_events(
        server.post("/v1/responses", {"input": "hi", "tools": TOOLS, "stream": True})
    )
    assert [event["sequence_number"] for event in stream] == list(range(len(stream)))
    assert [stream[0]["type"], stream[1]["type"]] == ["response.created", "response.in_progress"]
    assert stream[0]["response"]["status"] == "in_progress"
    assert stream[-1]["type"] == "response.completed"
    final = stream[-1]["response"]
    assert without_ids(final["output"]) == without_ids(whole["output"])
    assert final["usage"] == whole["usage"]
    for index, item in enumerate(final["output"]):
        mine = [event for event in stream if event.get("output_index") == index]
        assert mine[0]["type"] == "response.output_item.added"
        assert mine[-1]["type"] == "response.output_item.done"
        assert mine[-1]["item"] == item
        deltas = "".join(event["delta"] for event in mine if event["type"].endswith(".delta"))
        said = item["arguments"] if "arguments" in item else item["content"][0]["text"]
        assert deltas == said
        assert {event.get("item_id", item["id"]) for event in mine} == {item["id"]}


def without_ids(output: list[dict]) -> list[dict]:
    return [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in output]


def test_cut_off(server: Server) -> None:
    server.engine.script = say("A long answer.")
    body = ask(server, max_output_tokens=5)
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["output"][0]["status"] == "incomplete"
    stream = named_events(
        server.post("/v1/responses", {"input": "hi", "max_output_tokens": 5, "stream": True})
    )
    assert stream[-1]["type"] == "response.incomplete"


def test_fault_inside_a_stream(server: Server) -> None:
    server.engine.fail_at, server.engine.failure = 2, EngineFaultError("The engine failed.")
    stream = named_events(server.post("/v1/responses", {"input": "hi", "stream": True}))
    assert stream[-1]["type"] == "response.failed"
    assert stream[-1]["response"]["error"]["message"] == "The engine failed."


def test_logprobs(server: Server) -> None:
    server.engine.script = say("Hi")
    body = ask(server, include=["message.output_text.logprobs"], top_logprobs=2)
    logprobs = body["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in logprobs][:2] == ["H", "i"]
    assert len(logprobs[0]["top_logprobs"]) == 2


class TestInput:
    def test_items(self, server: Server) -> None:
        items = [
            {"role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "summary": [],
             "content": [{"type": "reasoning_text", "text": "t"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "one"},
            {"type": "function_call_output", "call_id": "c2",
             "output": [{"type": "output_text", "text": "two"}]},
        ]  # fmt: skip
        ask(server, input=items, max_output_tokens=1)
        seen = server.template.seen
        assert [m["role"] for m in seen] == ["system", "user", "assistant", "tool", "tool"]
        assert seen[2]["reasoning_content"] == "t"
        assert [call["id"] for call in seen[2]["tool_calls"]] == ["c1", "c2"]
        assert [m["tool_call_id"] for m in seen[3:]] == ["c1", "c2"]

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"input": None}, "input"),
            ({"input": []}, "input"),
            ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
            ({"input": [{"content": "x"}]}, "input[0].role"),
            ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
            ({"input": [{"type": "function_call", "name": "x"}]}, "input[0].call_id"),
            ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
            ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
             "input[0].content[0].type"),
            ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
            ({"tools": [{"type": "function"}]}, "tools[0].name"),
            ({"tools": [{"type": "function", "name": "f", "parameters": 5}]},
             "tools[0].function.parameters"),
            ({"background": True, "store": False}, "store"),
            ({"max_output_tokens": 0}, "max_output_tokens"),
            ({"max_output_tokens": 10**9}, "max_output_tokens"),
            ({"temperature": -1}, "temperature"),
            ({"top_logprobs": 21}, "top_logprobs"),
            ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
            ({"input": "x" * 5000}, "input"),
        ],
    )  # fmt: skip
    def test_refused(self, server: Server, fields: dict, param: str) -> None:
        error = server.refusal("/v1/responses", {"input": "hi", **fields})
        assert error["param"] == param
        assert not server.engine.submissions


class TestStore:
    def test_get_and_delete(self, server: Server) -> None:
        server.engine.script = say("Hi!")
        body = ask(server)
        assert body["store"] is True
        path = f"/v1/responses/{body['id']}"
        assert server.client.simulate_get(path).json == body
        assert server.client.simulate_post(f"{path}/cancel").status_code == 400
        assert server.client.simulate_delete(path).json["deleted"] is True
        for method in ("GET", "DELETE"):
            assert server.client.simulate_request(method, path).status_code == 404
        assert server.client.simulate_post(f"{path}/cancel").status_code == 404

    def test_conversation_goes_on(self, server: Server) -> None:
        server.engine.script = say(f"One.{CALL}")
        first = ask(server, input="a", instructions="Only now.", tools=TOOLS)
        second = ask(server, input="b", previous_response_id=first["id"])
        assert [m["role"] for m in server.template.seen] == ["user", "assistant", "user"]
        assert server.template.seen[1]["content"] == "One."
        assert server.template.seen[1]["tool_calls"]
        assert second["previous_response_id"] == first["id"]

    def test_streams_are_kept_too(self, server: Server) -> None:
        server.engine.script = say("Hi!")
        stream = named_events(server.post("/v1/responses", {"input": "hi", "stream": True}))
        path = f"/v1/responses/{stream[-1]['response']['id']}"
        assert server.client.simulate_get(path).json == stream[-1]["response"]

    def test_not_when_unwanted(self, server: Server) -> None:
        server.engine.script = say("Hi!")
        body = ask(server, store=False)
        assert body["store"] is False
        assert server.client.simulate_get(f"/v1/responses/{body['id']}").status_code == 404

    def test_not_with_several_workers(self) -> None:
        server = Server(api_server_count=2)
        server.engine.script = say("Hi!")
        assert ask(server)["store"] is False
        error = server.refusal("/v1/responses", {"input": "x", "background": True})
        assert error["param"] == "background"

    def test_unknown_predecessor(self, server: Server) -> None:
        body = {"input": "x", "previous_response_id": "resp_0"}
        error = server.refusal("/v1/responses", body, status=404)
        assert error["param"] == "previous_response_id"

    def test_is_bounded(self) -> None:
        store = ResponseStore(is_enabled=True)
        for i in range(MAX_RESPONSES + 1):
            store.put(str(i), StoredResponse(b"", (), 1))
        assert store.get("0") is None
        assert store.get("1") is not None
        for i in range(9):
            store.put(f"big{i}", StoredResponse(b"", (), MAX_BYTES // 8))
        assert store.get("big0") is None
        assert store.get("big8") is not None
        store.put("huge", StoredResponse(b"", (), MAX_BYTES))
        assert store.get("huge") is None


class TestInputItems:
    def items(self, server: Server, id_: str, query: str = "", status: int = 200) -> Any:
        result = server.client.simulate_get(f"/v1/responses/{id_}/input_items{query}")
        assert result.status_code == status, result.text
        return result.json

    def test_a_text(self, server: Server) -> None:
        server.engine.script = say("Hi!")
        listed = self.items(server, ask(server, input="hello")["id"])
        (item,) = listed["data"]
        assert item["id"].startswith("msg_")
        assert (item["type"], item["role"]) == ("message", "user")
        assert item["content"] == [{"type": "input_text", "text": "hello"}]
        assert listed == {
            "object": "list",
            "data": [item],
            "first_id": item["id"],
            "last_id": item["id"],
            "has_more": False,
        }

    def test_pages(self, server: Server) -> None:
        server.engine.script = say("Hi!")
        given = [
            {"role": "user", "content": "0"},
            {"id": "mine", "role": "assistant", "content": "1"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "3"},
            {"role": "user", "content": [{"type": "input_text", "text": "4"}]},
        ]
        id_ = ask(server, input=given)["id"]
        forward = self.items(server, id_, "?order=asc")["data"]
        assert [item["type"] for item in forward] == [
            "message", "message", "function_call", "function_call_output", "message",
        ]  # fmt: skip
        assert forward[1]["id"] == "mine"
        assert forward[1]["content"] == [{"type": "output_text", "text": "1"}]
        assert len({item["id"] for item in forward}) == 5
        assert self.items(server, id_)["data"] == forward[::-1]
        first = self.items(server, id_, "?limit=2")
        assert first["data"] == forward[:2:-1]
        assert first["has_more"] is True
        rest = self.items(server, id_, f"?after={first['last_id']}")
        assert rest["data"] == forward[2::-1]
        assert rest["has_more"] is False
        last = self.items(server, id_, f"?after={forward[0]['id']}")
        assert (last["data"], last["first_id"], last["has_more"]) == ([], None, False)

    @pytest.mark.parametrize(
        "query", ["limit=0", "limit=101", "limit=1000000000", "limit=x", "order=up", "after=none"]
    )
    def test_refused(self, server: Server, query: str) -> None:
        server.engine.script = say("Hi!")
        body = self.items(server, ask(server)["id"], f"?{query}", 400)
        assert body["error"]["param"] == query.partition("=")[0]

    def test_unknown(self, server: Server) -> None:
        self.items(server, "resp_0", status=404)
