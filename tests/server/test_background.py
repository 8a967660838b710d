"""Responses of /v1/responses that are made in the background, polled or streamed."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from app_under_test import Server
from falcon import testing
from scripted_engine import say
from test_responses import CALL, EVERYTHING, TOOLS, ask, named_events

from octavo.errors import EngineFaultError, NotReadyError, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAMED = {"background": True, "stream": True}


@pytest.fixture
def server() -> Server:
    return Server(tool_call_parser="hermes", reasoning_parser="think")


class TestBackground:
    @pytest.fixture
    def server(self, server: Server) -> Iterator[Server]:
        server.engine.gate = threading.Event()
        yield server
        server.engine.gate.set()

    def begin(self, server: Server, **body: Any) -> str:
        answer = ask(server, background=True, **body)
        assert (answer["status"], answer["background"]) == ("queued", True)
        assert answer["output"] == []
        return str(answer["id"])

    def get(self, server: Server, id_: str) -> dict[str, Any]:
        result = server.client.simulate_get(f"/v1/responses/{id_}")
        assert result.status_code == 200
        return result.json

    def wait(self, server: Server, id_: str, *statuses: str) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while (answer := self.get(server, id_))["status"] not in statuses:
            assert time.monotonic() < deadline, answer
            time.sleep(0.005)
        return answer

    def let_go(self, server: Server) -> None:
        assert server.engine.gate is not None
        server.engine.gate.set()

    def test_is_polled_to_its_end(self, server: Server) -> None:
        server.engine.script = say(f"<think>Hm.</think>Hi!{CALL}")
        id_ = self.begin(server, tools=TOOLS)
        assert self.get(server, id_)["status"] == "queued"
        assert server.client.simulate_get(f"/v1/responses/{id_}/input_items").json["data"]
        self.let_go(server)
        answer = self.wait(server, id_, "completed")
        kinds = [item["type"] for item in answer["output"]]
        assert kinds == ["reasoning", "message", "function_call"]
        assert answer["usage"]["output_tokens"] > 0
        assert answer["background"] is True
        followed = ask(server, input="b", previous_response_id=id_)
        assert followed["status"] == "completed"
        assert server.template.seen[1]["content"] == "Hi!"

    def test_cancel(self, server: Server) -> None:
        id_ = self.begin(server)
        path = f"/v1/responses/{id_}"
        first = server.client.simulate_post(f"{path}/cancel").json
        assert first["status"] == "cancelled"
        assert server.engine.last.aborted
        assert self.wait(server, id_, "cancelled") == first
        assert server.client.simulate_post(f"{path}/cancel").json == first
        error = server.refusal("/v1/responses", {"input": "b", "previous_response_id": id_})
        assert error["param"] == "previous_response_id"

    def test_a_response_that_runs_cannot_be_continued(self, server: Server) -> None:
        id_ = self.begin(server)
        error = server.refusal("/v1/responses", {"input": "b", "previous_response_id": id_})
        assert "not complete" in error["message"]

    def test_delete_stops_it(self, server: Server) -> None:
        id_ = self.begin(server)
        assert server.client.simulate_delete(f"/v1/responses/{id_}").json["deleted"] is True
        assert server.engine.last.aborted
        assert server.client.simulate_get(f"/v1/responses/{id_}").status_code == 404

    def test_a_fault_is_told(self, server: Server) -> None:
        server.engine.fail_at, server.engine.failure = 1, EngineFaultError("The engine failed.")
        id_ = self.begin(server)
        self.let_go(server)
        answer = self.wait(server, id_, "failed")
        assert answer["error"] == {"code": "engine_error", "message": "The engine failed."}

    def test_one_that_was_waited_for_cannot_be_cancelled(self, server: Server) -> None:
        self.let_go(server)
        server.engine.script = say("Hi!")
        id_ = ask(server)["id"]
        assert server.client.simulate_post(f"/v1/responses/{id_}/cancel").status_code == 400

    def test_their_number_is_bounded(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("octavo.server.response_store.MAX_RUNNING", 2)
        ids = [self.begin(server) for _ in range(2)]
        body = {"input": "hi", "background": True}
        assert server.refusal("/v1/responses", body, status=429)["code"] == "queue_full"
        server.client.simulate_delete(f"/v1/responses/{ids[0]}")
        self.begin(server)

    def test_one_that_another_came_before_is_let_go(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the early look and the place in the store prompts are encoded and sent."""
        monkeypatch.setattr("octavo.server.response_store.MAX_RUNNING", 1)
        submit, body = server.engine.submit, {"input": "hi", "background": True}

        def submit_after_another(*args: Any, **kwargs: Any) -> Any:
            monkeypatch.setattr(server.engine, "submit", submit)
            self.begin(server)
            return submit(*args, **kwargs)

        monkeypatch.setattr(server.engine, "submit", submit_after_another)
        assert server.refusal("/v1/responses", body, status=429)["code"] == "queue_full"
        assert server.engine.last.aborted

    def test_its_end_is_logged_with_its_tokens(
        self, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        def lines(id_: str) -> list[Any]:  # others may still end
            return [each for each in caplog.records if id_ in each.getMessage()]

        server.engine.script = say("Hi!")
        with caplog.at_level("INFO", logger="octavo.access"):
            id_ = self.begin(server)
            assert not lines(id_)
            self.let_go(server)
            self.wait(server, id_, "completed")
            deadline = time.monotonic() + 20
            while not lines(id_) and time.monotonic() < deadline:
                time.sleep(0.005)
        [record] = lines(id_)
        fields = record.fields
        assert fields["status"] == "completed"
        assert fields["output_tokens"] == 4
        assert fields["prompt_tokens"] == len(server.engine.last.prompt)
        assert fields["finish_reasons"] == ["stop"]


def test_no_line_for_a_background_response_where_none_is_wanted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(disable_log_requests=True)
    server.engine.script = say("Hi!")
    with caplog.at_level("INFO", logger="octavo.access"):
        told = named_events(server.post("/v1/responses", {"input": "a", **STREAMED}))
        id_ = told[-1]["response"]["id"]
        for thread in threading.enumerate():
            if thread.name == f"background-{id_}":
                thread.join(20)
    assert not [each for each in caplog.records if id_ in each.getMessage()]


class TestBackgroundStream:
    def stream(self, server: Server, id_: str, after: int | None = None) -> Any:
        query = "?stream=true" + ("" if after is None else f"&starting_after={after}")
        return server.client.simulate_get(f"/v1/responses/{id_}{query}")

    def begun(self, server: Server, **body: Any) -> tuple[str, Iterator[bytes], Any]:
        """A response whose client has read the first events: id, its body, and what closes it."""
        data = msgspec.json.encode({"input": "hi", **STREAMED, **body})
        environ = testing.create_environ(
            path="/v1/responses",
            method="POST",
            body=data,
            headers={"Content-Type": "application/json"},
        )
        stream = server.app(environ, testing.StartResponseMock())
        blocks = iter(stream)
        read = b""
        while read.count(b"\n\n") < 2:
            read += next(blocks)
        created, queued = read.split(b"\n\n")[:2]
        assert created.startswith(b"event: response.created\n")
        assert queued.startswith(b"event: response.queued\n")
        response = msgspec.json.decode(created.partition(b"data: ")[2])["response"]
        assert response["status"] == "queued"
        return response["id"], blocks, stream

    def test_tells_what_is_kept_and_can_be_resumed_anywhere(self, server: Server) -> None:
        server.engine.script = say(EVERYTHING)
        result = server.post("/v1/responses", {"input": "hi", "tools": TOOLS, **STREAMED})
        told = named_events(result)
        assert [each["sequence_number"] for each in told] == list(range(len(told)))
        kinds = [each["type"] for each in told]
        assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
        assert kinds[-1] == "response.completed"
        last = told[-1]["response"]
        assert server.client.simulate_get(f"/v1/responses/{last['id']}").json == last
        assert last["usage"]["output_tokens"] > 0
        for after in (None, 0, 1, len(told) // 2, len(told) - 2):
            expected = told[0 if after is None else after + 1 :]
            assert named_events(self.stream(server, last["id"], after)) == expected
        for after in (len(told) - 1, len(told) + 100):
            assert self.stream(server, last["id"], after).text == ""

    def test_is_the_stream_of_one_that_is_waited_for(self, server: Server) -> None:
        server.engine.script = say(EVERYTHING)
        here = named_events(server.post("/v1/responses", {"input": "a", "stream": True}))
        there = named_events(server.post("/v1/responses", {"input": "a", **STREAMED}))
        kinds = [each["type"] for each in there]
        assert kinds[:1] + kinds[2:] == [each["type"] for each in here]
        assert [e["delta"] for e in there if "delta" in e] == [
            e["delta"] for e in here if "delta" in e
        ]

    def test_goes_on_without_its_client(self, server: Server) -> None:
        server.engine.gate = threading.Event()
        server.engine.script = say("Hi!")
        id_, _, stream = self.begun(server)
        stream.close()
        assert not server.engine.last.aborted
        waiting: list[Any] = []
        reader = threading.Thread(target=lambda: waiting.append(self.stream(server, id_, 1)))
        reader.start()
        server.engine.gate.set()
        reader.join(20)
        events = named_events(waiting[0])
        assert events[0]["type"] == "response.in_progress"
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == "Hi!"
        assert not server.engine.last.aborted

    def test_cancel_ends_every_stream(self, server: Server) -> None:
        server.engine.gate = threading.Event()
        id_, blocks, stream = self.begun(server)
        assert server.client.simulate_post(f"/v1/responses/{id_}/cancel").status_code == 200
        rest = b"".join(blocks)
        stream.close()
        assert rest.startswith(b"event: response.cancelled\n")
        assert rest.count(b"\n\n") == 1
        assert server.engine.last.aborted
        [last] = named_events(self.stream(server, id_, 1))
        assert last["response"]["status"] == "cancelled"

    def test_an_item_in_progress_is_ended_with_the_response(self, server: Server) -> None:
        server.engine.fail_at, server.engine.failure = 2, EngineFaultError("The engine failed.")
        told = named_events(server.post("/v1/responses", {"input": "hi", **STREAMED}))
        assert [each["sequence_number"] for each in told] == list(range(len(told)))
        assert [each["type"] for each in told[-4:]] == [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.failed",
        ]

    def test_delete_ends_every_stream(self, server: Server) -> None:
        server.engine.gate = threading.Event()
        id_, blocks, _ = self.begun(server)
        assert server.client.simulate_delete(f"/v1/responses/{id_}").status_code == 200
        assert b"response.cancelled" in b"".join(blocks)
        assert self.stream(server, id_).status_code == 404

    @pytest.mark.parametrize("error", [EngineFaultError("No."), NotReadyError("Shutting down.")])
    def test_a_fault_ends_it(self, server: Server, error: RequestError) -> None:
        """An engine that fails, and a server that ends while the response is made."""
        server.engine.fail_at, server.engine.failure = 2, error
        told = named_events(server.post("/v1/responses", {"input": "hi", **STREAMED}))
        assert told[-1]["type"] == "response.failed"
        assert told[-1]["response"]["error"]["message"] == error.message
        assert told[-1]["sequence_number"] == len(told) - 1

    def test_events_that_have_made_room_are_refused(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("octavo.server.event_log.MAX_LOG_BYTES", 4000)
        server.engine.script = say("word " * 40)
        server.engine.gate = threading.Event()
        id_, blocks, _ = self.begun(server)
        server.engine.gate.set()
        told = b"".join(blocks)  # this reader may have been overtaken
        assert b"event: response.completed\n" in told or b'"code":"events_not_kept"' in told
        while server.client.simulate_get(f"/v1/responses/{id_}").json["status"] != "completed":
            time.sleep(0.005)
        result = self.stream(server, id_, 0)
        assert result.status_code == 404
        assert result.json["error"]["code"] == "events_not_kept"
        assert result.json["error"]["param"] == "starting_after"
        first = int(result.json["error"]["message"].split("events from ")[1].split()[0])
        assert self.stream(server, id_, first - 2).status_code == 404
        rest = named_events(self.stream(server, id_, first - 1))
        assert rest[0]["sequence_number"] == first
        assert rest[-1]["type"] == "response.completed"

    def test_one_without_events_has_no_stream(self, server: Server) -> None:
        server.engine.script = say("Hi!")
        ids = [ask(server)["id"], ask(server, background=True)["id"]]
        for id_ in ids:
            result = self.stream(server, id_)
            assert result.status_code == 400
            assert result.json["error"]["param"] == "stream"
        assert self.stream(server, "resp_0").status_code == 404

    @pytest.mark.parametrize(
        "query",
        ["stream=yes", "stream=true&starting_after=-1", "stream=true&starting_after=x",
         "stream=true&starting_after=1000000000", "starting_after=1.5"],
    )  # fmt: skip
    def test_a_bad_query_is_refused(self, server: Server, query: str) -> None:
        server.engine.script = say("Hi!")
        id_ = named_events(server.post("/v1/responses", {"input": "hi", **STREAMED}))[0]
        path = f"/v1/responses/{id_['response']['id']}?{query}"
        assert server.client.simulate_get(path).status_code == 400

    def test_head_has_no_events(self, server: Server) -> None:
        server.engine.script = say("Hi!")
        told = named_events(server.post("/v1/responses", {"input": "hi", **STREAMED}))
        path = f"/v1/responses/{told[0]['response']['id']}?stream=true"
        head = server.client.simulate_head(path)
        assert head.headers["Content-Type"] == "application/json"
