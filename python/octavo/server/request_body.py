"""Reading a request's body: JSON only, never more than the cap."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import gevent
from gevent import monkey
from gunicorn.http.errors import ParseException

from octavo.errors import InvalidRequestError, RequestError

if TYPE_CHECKING:
    import falcon

_PIECE = 1 << 16


class BodyTooLargeError(RequestError):
    """Over --max-body-bytes: 413."""

    status = 413
    code = "body_too_large"


class BodyTooSlowError(RequestError):
    """Not complete within the deadline: 408."""

    status = 408
    code = "body_too_slow"


def read_body(req: falcon.Request, max_bytes: int, deadline_s: float) -> bytearray:
    """The whole body.

    Raises:
        InvalidRequestError: It is not application/json.
        BodyTooLargeError: It is longer than max_bytes; at most that is read.
        BodyTooSlowError: It did not come in time.
    """
    _check_headers(req)
    length = req.content_length
    if length is not None and length > max_bytes:
        raise _too_large(max_bytes)
    try:
        with _deadline(deadline_s):
            return _read(req, length, max_bytes)
    except (gevent.Timeout, TimeoutError):  # too long in all, or silent for too long
        raise BodyTooSlowError("The request body did not come in time.") from None
    except (OSError, ParseException):  # it ended early, or a chunk is malformed
        raise InvalidRequestError("The request body did not arrive whole.") from None


def _check_headers(req: falcon.Request) -> None:
    kind = (req.content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequestError(
            "The request body must be JSON: set Content-Type: application/json."
        )
    coding = req.get_header("Content-Encoding") or "identity"
    if coding.strip().lower() != "identity":
        raise InvalidRequestError("A compressed request body is not accepted.")


def _read(req: falcon.Request, length: int | None, max_bytes: int) -> bytearray:
    limit = max_bytes + 1 if length is None else length
    stream = req.stream if length is None and _is_terminated(req) else req.bounded_stream
    body = bytearray()
    while len(body) < limit and (piece := stream.read(min(_PIECE, limit - len(body)))):
        body += piece
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    if length is not None and len(body) < length:  # what came may well be JSON by itself
        raise InvalidRequestError("The request body did not arrive whole.")
    return body


def _is_terminated(req: falcon.Request) -> bool:
    """The server itself finds the end of a body without a length."""
    return bool(req.env.get("wsgi.input_terminated"))


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"The request body is over the limit of {max_bytes} bytes.")


def _deadline(seconds: float) -> contextlib.AbstractContextManager[object]:
    if not monkey.is_module_patched("socket"):
        return contextlib.nullcontext()
    timeout: contextlib.AbstractContextManager[object] = gevent.Timeout(seconds)
    return timeout
