"""Every fault of a request to the one shape of errors, with messages fit for strangers."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import falcon
import msgspec

from octavo.errors import OctavoError, RequestError
from octavo.server.schemas.shared import ErrorDetail, ErrorResponse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LOG = logging.getLogger(__name__)
_ENCODER = msgspec.json.Encoder()

# What the framework refuses: message and type.
_REFUSALS = {
    404: ("There is nothing at this path.", "not_found_error"),
    405: ("This path does not take this method.", "invalid_request_error"),
}


class InternalError(RequestError):
    """A fault of the server itself: 500."""

    status = 500
    type = "internal_server_error"
    code = "internal_error"


class _HttpError(RequestError):
    """What the framework refuses."""

    def __init__(self, status: int) -> None:
        message, kind = _REFUSALS.get(
            status, ("The request is not valid HTTP.", "invalid_request_error")
        )
        super().__init__(message)
        self.status = status
        self.type = kind
        self.code = status


def error_body(error: RequestError) -> ErrorResponse:
    """The body of a known error."""
    return ErrorResponse(
        error=ErrorDetail(
            message=error.message, type=error.type, param=error.param, code=error.code
        )
    )


@contextlib.contextmanager
def renamed_param(names: Mapping[str, str]) -> Iterator[None]:
    """Name the fields of errors as the caller knows them.

    Args:
        names: First parts of field names to what they are called instead.
    """
    try:
        yield
    except RequestError as error:
        if error.param is None:
            raise
        for name, other in names.items():
            if error.param == name or error.param.startswith((f"{name}.", f"{name}[")):
                error.param = other + error.param.removeprefix(name)
                error.message = error.message.replace(name, other, 1)
                break
        raise


def add_error_handlers(app: falcon.App[Any, Any]) -> None:
    """Answer every exception of an app with the one shape."""
    app.add_error_handler(Exception, _handle_fault)
    app.add_error_handler(falcon.HTTPError, _handle_http_error)
    app.add_error_handler(falcon.HTTPStatus, _handle_http_status)
    app.add_error_handler(OctavoError, _handle_fault)
    app.add_error_handler(RequestError, _handle_request_error)


def _handle_request_error(
    req: falcon.Request, resp: falcon.Response, error: RequestError, _params: Mapping[str, Any]
) -> None:
    resp.status = error.status
    if error.retry_after_s is not None:
        resp.set_header("Retry-After", str(error.retry_after_s))
    if error.status == 401:
        resp.set_header("WWW-Authenticate", "Bearer")
    _write(req, resp, error)


def _handle_http_error(
    req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, _params: Mapping[str, Any]
) -> None:
    resp.status = error.status
    if error.headers:
        resp.set_headers(error.headers)
    _write(req, resp, _HttpError(error.status_code))


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
    _write(req, resp, InternalError("The server failed while it answered."))


def _write(req: falcon.Request, resp: falcon.Response, error: RequestError) -> None:
    """In the shape of the routed resource, or in the common one."""
    describe = getattr(req.context, "error_body", None) or error_body
    resp.content_type = falcon.MEDIA_JSON
    resp.stream = None
    resp.data = _ENCODER.encode(describe(error))
