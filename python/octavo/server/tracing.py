"""OpenTelemetry spans of generating requests, sent to --otlp-traces-endpoint over HTTP.

One span a request, named and described by OpenTelemetry's conventions for generative AI; prompts
and answers are not in it. A caller's `traceparent` becomes its parent. Without the flag nothing of
OpenTelemetry is imported.
"""

from __future__ import annotations

import importlib.util
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from octavo.errors import ConfigError
from octavo.server.request_report import REPORT, REQUEST_ID
from octavo.server.sse import EventStream
from octavo.version import __version__

if TYPE_CHECKING:
    import falcon

    from octavo.server.request_report import RequestReport

FLAG = "--otlp-traces-endpoint"
_EXPORTER = "opentelemetry.exporter.otlp.proto.http"
_FLUSH_MS = 2000
_OPERATIONS = {"/v1/completions": "text_completion", "/v1/responses": "generate_content"}
# Attribute of a span to the field of SamplingParams
_SAMPLING = {
    "gen_ai.request.max_tokens": "max_tokens",
    "gen_ai.request.temperature": "temperature",
    "gen_ai.request.top_p": "top_p",
    "gen_ai.request.top_k": "top_k",
    "gen_ai.request.frequency_penalty": "frequency_penalty",
    "gen_ai.request.presence_penalty": "presence_penalty",
    "gen_ai.request.choice.count": "n",
}


def check_tracing(endpoint: str) -> None:
    """See whether spans could be sent.

    Raises:
        ConfigError: The endpoint is no URL, or the packages are not there.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{FLAG}: {endpoint!r} is not a URL like http://localhost:4318.")
    try:
        found = importlib.util.find_spec(_EXPORTER)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ConfigError(f"{FLAG} needs OpenTelemetry: pip install 'octavo[otel]'.")


class Tracing:
    """Makes spans once start() has been called.

    Args:
        endpoint: The collector's URL; a bare one gets the path /v1/traces.
        model: The served model's name.
    """

    def __init__(self, endpoint: str, model: str) -> None:
        bare = urlsplit(endpoint).path in ("", "/")
        self._endpoint = endpoint.rstrip("/") + "/v1/traces" if bare else endpoint
        self._model = model
        self._provider: Any = None
        self._tracer: Any = None

    def start(self) -> None:
        """Import the packages, which takes a while, and begin to export in the background."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        resource = Resource.create({"service.name": "octavo", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=self._endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("octavo", __version__)

    def close(self) -> None:
        """Send what is left, and stop."""
        if self._provider is not None:
            self._tracer = None
            self._provider.force_flush(_FLUSH_MS)
            self._provider.shutdown()

    # --- Falcon's middleware ---

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, _resource: object, _ok: bool
    ) -> None:
        """Make the request's span, at the end of a stream where it is one."""
        status = resp.status_code
        if REPORT not in req.env:
            return
        if isinstance(resp.stream, EventStream):
            resp.stream.on_close(lambda: self._trace(req, status))
        else:
            self._trace(req, status)

    def _trace(self, req: falcon.Request, status: int) -> None:
        tracer = self._tracer
        if tracer is None:
            return
        from opentelemetry import propagate, trace  # noqa: PLC0415 - imported by start()

        end = time.time_ns()
        began = end - int((time.monotonic() - req.context.started) * 1e9)
        route = req.uri_template or req.path
        operation = _OPERATIONS.get(route, "chat")
        parent = req.get_header("Traceparent")
        carrier = {"traceparent": parent, "tracestate": req.get_header("Tracestate") or ""}
        span = tracer.start_span(
            f"{operation} {self._model}",
            context=propagate.extract(carrier) if parent else None,
            kind=trace.SpanKind.SERVER,
            start_time=began,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "octavo",
                "gen_ai.request.model": self._model,
                "gen_ai.response.model": self._model,
                "http.request.method": req.method,
                "http.route": route,
                "http.response.status_code": status,
                "octavo.request_id": req.env[REQUEST_ID],
            },
        )
        span.set_attributes(_attributes(req.env[REPORT]()))
        if status >= 500:
            span.set_status(trace.StatusCode.ERROR)
            span.set_attribute("error.type", str(status))
        span.end(end)


def _attributes(report: RequestReport) -> dict[str, Any]:
    """What a span says of a generation."""
    sampling = report.sampling
    attributes: dict[str, Any] = {
        name: getattr(sampling, field)
        for name, field in _SAMPLING.items()
        if getattr(sampling, field) is not None
    }
    if sampling.seed is not None:
        attributes["gen_ai.request.seed"] = sampling.seed
    attributes["gen_ai.usage.input_tokens"] = report.prompt_tokens
    attributes["gen_ai.usage.output_tokens"] = report.output_tokens
    attributes["gen_ai.usage.cache_read.input_tokens"] = report.cached_tokens
    attributes["gen_ai.response.finish_reasons"] = report.finish_reasons
    if report.first_token_s is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = report.first_token_s
    return attributes
