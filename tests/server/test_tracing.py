"""Spans, at a collector on this machine; and the log's line for each request."""

from __future__ import annotations

import json
import logging
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from app_under_test import Server, events

from clients.environments import package
from octavo.errors import ConfigError
from octavo.logs import JsonFormatter
from octavo.server.gunicorn_logger import GunicornLogger
from octavo.server.request_report import REPORT
from octavo.server.tracing import Tracing, check_tracing

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "the prompt's secret"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """Takes what is sent to /v1/traces."""

    def __init__(self) -> None:
        package("opentelemetry.exporter.otlp.proto.http", "opentelemetry-exporter-otlp-proto-http")
        messages = package("opentelemetry.proto.collector.trace.v1.trace_service_pb2",
                           "opentelemetry-proto")  # fmt: skip
        self.raw = b""
        self.spans: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = messages.ExportTraceServiceRequest.FromString(body)
                assert self.path == "/v1/traces"
                outer.raw += body
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        outer.spans += scope.spans
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                return

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.http.shutdown()
    made.http.server_close()


def attributes(span: Any) -> dict[str, Any]:
    def value(of: Any) -> Any:
        kind = of.WhichOneof("value")
        if kind == "array_value":
            return [value(each) for each in of.array_value.values]
        return getattr(of, kind)

    return {each.key: value(each.value) for each in span.attributes}


def test_spans_tell_of_requests_and_not_what_was_said(collector: Collector) -> None:
    tracing = Tracing(collector.url, "org/fake")
    server = Server(tracing=tracing)
    server.chat("before the start")
    tracing.start()
    assert server.chat(SECRET, max_tokens=5, temperature=0).status_code == 200
    stream = server.post(
        "/v1/completions",
        {"prompt": SECRET, "max_tokens": 4, "stream": True, "seed": 7, "n": 2},
        headers={"Traceparent": PARENT},
    )
    assert events(stream)
    assert server.client.simulate_get("/v1/models").status_code == 200
    tracing.close()

    chat, completion = collector.spans
    assert SECRET.encode() not in collector.raw
    assert chat.name == "chat org/fake"
    assert chat.end_time_unix_nano >= chat.start_time_unix_nano > 0
    found = attributes(chat)
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.request.max_tokens"] == 5
    assert found["gen_ai.request.temperature"] == 0
    assert found["gen_ai.usage.output_tokens"] == 5
    assert found["gen_ai.response.finish_reasons"] == ["length"]
    assert found["http.response.status_code"] == 200
    assert completion.name == "text_completion org/fake"
    assert completion.trace_id.hex() == PARENT.split("-")[1]
    assert completion.parent_span_id.hex() == PARENT.split("-")[2]
    found = attributes(completion)
    assert found["gen_ai.usage.output_tokens"] == 8
    assert found["gen_ai.request.seed"] == 7
    assert found["gen_ai.request.choice.count"] == 2
    assert 0 < found["gen_ai.response.time_to_first_chunk"] < 60


def test_a_flag_that_cannot_work_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="not a URL"):
        check_tracing("localhost:4317")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"octavo\[otel\]"):
        check_tracing("http://localhost:4318")


def test_the_log_has_one_json_line_without_the_prompt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="octavo.access")
    logging.getLogger("octavo").propagate = True
    server = Server()
    environ: dict[str, Any] = {}

    class Keep:
        def process_response(self, req: Any, *_: object) -> None:
            environ.update(req.env)

    server.app.add_middleware(Keep())
    headers = {"X-Request-Id": "abc"}
    body = {"prompt": SECRET, "max_tokens": 4}
    assert server.post("/v1/completions", body, headers=headers).status_code == 200
    assert REPORT in environ
    logger = GunicornLogger(SimpleNamespace(accesslog="-", errorlog="-"))
    logger.access(SimpleNamespace(status="200 OK"), None, environ, timedelta(seconds=0.25))
    [record] = caplog.records
    line = json.loads(JsonFormatter(with_traceback=False).format(record))
    assert SECRET not in json.dumps(line)
    assert line["path"] == "/v1/completions"
    assert (line["status"], line["seconds"], line["request_id"]) == (200, 0.25, "abc")
    assert (line["prompt_tokens"], line["output_tokens"]) == (1 + len(SECRET), 4)
    assert line["finish_reasons"] == ["length"]
    assert line["first_token_s"] > 0
