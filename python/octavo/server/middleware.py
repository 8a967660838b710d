"""What happens around every route: request ids, keys, origins."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import uuid
from typing import TYPE_CHECKING, Any

import falcon

from octavo.errors import UnauthorizedError
from octavo.server.request_report import REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import Sequence

_PLAIN_LIST = re.compile(r"^[A-Za-z0-9 ,_-]{1,1024}$")
_PLAIN_ID = re.compile(r"^[\x21-\x7e]{1,128}$")


class RequestContext:
    """Keeps what handlers and logs need; echoes x-request-id, or makes one, on every answer."""

    def process_request(self, req: falcon.Request, _resp: falcon.Response) -> None:
        """Keep the id, and when the request came, for the routes and the log."""
        req.context.started = time.monotonic()
        given = req.get_header("X-Request-Id")
        req.context.request_id = given if given and _PLAIN_ID.match(given) else uuid.uuid4().hex
        req.env[REQUEST_ID] = req.context.request_id

    def process_resource(
        self,
        req: falcon.Request,
        _resp: falcon.Response,
        resource: object,
        _params: dict[str, Any],
    ) -> None:
        """Keep how the resource words its errors."""
        req.context.error_body = getattr(resource, "error_body", None)

    def process_response(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        _resource: object,
        _ok: bool,
    ) -> None:
        """Send the id back."""
        resp.set_header("X-Request-Id", req.context.request_id)


class ApiKeys:
    """Refuses requests without a key. A resource is open only if it says so itself.

    The decision is made on the resource that the router chose, never on the path's text.

    Args:
        keys: For all resources; none lets everybody in.
        admin_keys: For those that say `is_admin`; none lets nobody in.
    """

    def __init__(self, keys: Sequence[str], admin_keys: Sequence[str] = ()) -> None:
        self._digests = [_digest(key.encode()) for key in keys]
        self._admin_digests = [_digest(key.encode()) for key in admin_keys]

    def process_resource(
        self,
        req: falcon.Request,
        _resp: falcon.Response,
        resource: object,
        _params: dict[str, Any],
    ) -> None:
        """Raise UnauthorizedError for a closed resource and no good key."""
        digests = self._digests
        if getattr(resource, "is_admin", False):
            digests = self._admin_digests
        elif not digests or getattr(resource, "is_open", False):
            return
        if not _matches(_presented_key(req), digests):
            raise UnauthorizedError("The API key is missing or wrong.")


class Origins:
    """Lets pages of the allowed origins call the server."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = frozenset(allowed)

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer a preflight, which carries no key, before routing."""
        wanted = req.get_header("Access-Control-Request-Method")
        if req.method != "OPTIONS" or wanted is None or not self._allows(req):
            return
        resp.set_header("Access-Control-Allow-Methods", "GET, HEAD, POST, DELETE, OPTIONS")
        headers = req.get_header("Access-Control-Request-Headers")
        if headers and _PLAIN_LIST.match(headers):
            resp.set_header("Access-Control-Allow-Headers", headers)
        resp.set_header("Access-Control-Max-Age", "600")
        resp.status = falcon.HTTP_204
        resp.complete = True

    def process_response(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        _resource: object,
        _ok: bool,
    ) -> None:
        """Name the origin on the answer."""
        if not self._allowed:
            return
        resp.append_header("Vary", "Origin")
        if self._allows(req):
            resp.set_header("Access-Control-Allow-Origin", req.get_header("Origin") or "*")
            resp.set_header("Access-Control-Expose-Headers", "X-Request-Id, Retry-After")

    def _allows(self, req: falcon.Request) -> bool:
        origin = req.get_header("Origin")
        return origin is not None and ("*" in self._allowed or origin in self._allowed)


def _presented_key(req: falcon.Request) -> bytes:
    scheme, _, token = (req.get_header("Authorization") or "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else req.get_header("X-Api-Key") or ""
    return key.encode("latin-1", "replace")  # WSGI's way of carrying the header's bytes


def _matches(key: bytes, digests: Sequence[bytes]) -> bool:
    """Compare with every key, so that the time tells nothing."""
    presented = _digest(key)
    matches = [hmac.compare_digest(presented, digest) for digest in digests]
    return any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
