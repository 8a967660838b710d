"""Every fault of a request to the one shape of errors, with messages fit for strangers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import falcon
import msgspec

from octavo.errors import OctavoError, RequestError
from octavo.server.schemas.shared import ErrorDetail, ErrorResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOG = logging.getLogger(__name__)
_ENCODER = msgspec.json.Encoder()

_MESSAGES = {
    400: "The request is not valid HTTP.",
    404: "There is nothing at this path.",
    405: "This path does not take this method.",
    413: "The request body is too large.",
    415: "The request body must be application/json.",
    503: "The server is not ready. Please try again.",
}
_TYPES = {
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    503: "service_unavailable_error",
}
_FAULT = ErrorDetail(
    message="The server failed while it answered.",
    type="internal_server_error",
    code="internal_error",
)


def error_body(error: RequestError) -> ErrorResponse:
    """The body of a known error."""
    return ErrorResponse(
        error=ErrorDetail(
            message=error.message, type=error.type, param=error.param, code=error.code
        )
    )


def add_error_handlers(app: falcon.App[Any, Any]) -> None:
    """Answer every exception of an app with the one shape."""
    app.add_error_handler(Exception, _handle_fault)
    app.add_error_handler(falcon.HTTPError, _handle_http_error)
    app.add_error_handler(falcon.HTTPStatus, _handle_http_status)
    app.add_error_handler(OctavoError, _handle_fault)
    app.add_error_handler(RequestError, _handle_request_error)
    app.set_error_serializer(_serialize)


def _serialize(_req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
    """For errors that Falcon answers without asking a handler."""
    _answer_http(resp, error.status_code, error.headers)


def _handle_request_error(
    _req: falcon.Request, resp: falcon.Response, error: RequestError, _params: Mapping[str, Any]
) -> None:
    resp.status = error.status
    if error.retry_after_s is not None:
        resp.set_header("Retry-After", str(error.retry_after_s))
    if error.status == 401:
        resp.set_header("WWW-Authenticate", "Bearer")
    _write(resp, error_body(error))


def _handle_http_error(
    _req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, _params: Mapping[str, Any]
) -> None:
    _answer_http(resp, error.status_code, error.headers)


def _handle_http_status(
    _req: falcon.Request,
    resp: falcon.Response,
    status: falcon.HTTPStatus,
    _params: Mapping[str, Any],
) -> None:
    resp.status = status.status
    if status.headers:
        resp.set_headers(status.headers)


def _handle_fault(
    req: falcon.Request, resp: falcon.Response, error: Exception, _params: Mapping[str, Any]
) -> None:
    _LOG.error("%s %s failed.", req.method, req.uri_template, exc_info=error)
    resp.status = 500
    _write(resp, ErrorResponse(error=_FAULT))


def _answer_http(resp: falcon.Response, status: int, headers: Any) -> None:
    resp.status = status
    if headers:
        resp.set_headers(headers)
    message = _MESSAGES.get(status, _MESSAGES[400])
    kind = _TYPES.get(status, "invalid_request_error")
    _write(resp, ErrorResponse(error=ErrorDetail(message=message, type=kind, code=status)))


def _write(resp: falcon.Response, body: ErrorResponse) -> None:
    resp.content_type = falcon.MEDIA_JSON
    resp.stream = None
    resp.data = _ENCODER.encode(body)
