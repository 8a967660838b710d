"""GET /openapi.json: made of the schemas that validate, so that it cannot say anything else."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.server.schemas.shared import ErrorResponse
from octavo.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import falcon

_REF = "#/components/schemas/{name}"
_METHODS = ("get", "post", "delete")
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")

_REFUSALS = {
    400: "The request is not acceptable; `param` names the field.",
    401: "No key, or a wrong one.",
    404: "There is no such thing here.",
    405: "This path does not take this method.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    429: "Too many requests wait; try again after `Retry-After` seconds.",
    500: "The server or its engine failed.",
    503: "Not ready, or shutting down; try again after `Retry-After` seconds.",
}
# Each event of a stream.
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
_ANYWHERE = (401, 404, 500, 503)
_WITH_BODY = (400, 408, 413, 429)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What the document says of one method of a resource.

    Attributes:
        summary: In a few words.
        request: Struct of the JSON body, None for no body.
        answer: Struct of the JSON answer; None for an object of any form.
        media_type: Of the answer.
        streams: The answer is server-sent events when the request says `stream`.
        error: Struct of the body of errors.
        query: Parameters of the query by name, as JSON schemas.
    """

    summary: str
    request: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct] | None = None
    media_type: str = "application/json"
    streams: bool = False
    error: type[msgspec.Struct] = ErrorResponse
    query: Mapping[str, object] = field(default_factory=dict)


class OpenApiResource:
    """The document; made when it is first asked for, so that no start waits for it."""

    is_open = True
    answers_while_loading = True
    operations = {"get": Operation(summary="This document")}  # noqa: RUF012

    def __init__(self, root_path: str) -> None:
        self._root_path = root_path
        self._routes: Mapping[str, object] = {}
        self._body = b""

    def describe(self, routes: Mapping[str, object]) -> None:
        """Say what the routes are; this is one of them."""
        self._routes = routes

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Answer in every phase."""
        if not self._body:
            self._body = msgspec.json.encode(openapi_document(self._routes, self._root_path))
        resp.data = self._body

    on_head = on_get


def openapi_document(routes: Mapping[str, object], root_path: str = "") -> dict[str, Any]:
    """The OpenAPI 3.1 document of routes whose resources have `operations`."""
    structs = _structs(routes.values())
    schemas, components = msgspec.json.schema_components(structs, ref_template=_REF)
    named = dict(zip(structs, schemas, strict=True))
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Octavo",
            "version": __version__,
            "description": "An inference server for large language models.",
        },
        "servers": [{"url": root_path or "/"}],
        "paths": {_path(path): _path_item(path, each, named) for path, each in routes.items()},
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    return document


def operations_of(resource: object) -> dict[str, Operation]:
    """What a resource says of its methods."""
    return dict(getattr(resource, "operations", {}))


def _structs(resources: Iterable[object]) -> list[type[msgspec.Struct]]:
    structs: dict[type[msgspec.Struct], None] = {}
    for resource in resources:
        for operation in operations_of(resource).values():
            for each in (operation.request, operation.answer, operation.error):
                if each is not None:
                    structs[each] = None
    return list(structs)


def _path(path: str) -> str:
    return _PARAMETER.sub(r"{\1}", path)


def _path_item(path: str, resource: object, named: Mapping[Any, Any]) -> dict[str, Any]:
    item: dict[str, Any] = {}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(path)
    ]
    if parameters:
        item["parameters"] = parameters
    is_open = getattr(resource, "is_open", False)
    for method, operation in operations_of(resource).items():
        item[method] = _operation(operation, named, is_open=is_open)
    return item


def _operation(operation: Operation, named: Mapping[Any, Any], *, is_open: bool) -> dict[str, Any]:
    described: dict[str, Any] = {"summary": operation.summary, "responses": {}}
    if not is_open:
        described["security"] = [{}, {"key": []}]
    schema = named[operation.answer] if operation.answer else {"type": "object"}
    if operation.media_type != "application/json":
        schema = {"type": "string"}
    content = {operation.media_type: {"schema": schema}}
    if operation.streams:
        content["text/event-stream"] = {"schema": _EVENT}
    responses = described["responses"]
    responses["200"] = {"description": "The answer.", "content": content}
    if operation.query:
        described["parameters"] = [
            {"name": name, "in": "query", "schema": schema}
            for name, schema in operation.query.items()
        ]
    if operation.request is not None:
        body = {"application/json": {"schema": named[operation.request]}}
        described["requestBody"] = {"required": True, "content": body}
    error = {"application/json": {"schema": named[operation.error]}}
    by_query = (400,) if operation.query else ()
    statuses = {*_ANYWHERE, *by_query, *(_WITH_BODY if operation.request else ())}
    for status in sorted(statuses):
        responses[str(status)] = {"description": _REFUSALS[status], "content": error}
    return described
