"""The HTTP worker: gunicorn's gevent worker that answers from the first second to the last.

It listens before the model is there, and goes on listening while it drains, so that new requests
get a 503 and not a refused connection. Tokenizer and template are read by a thread meanwhile.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import ssl
import struct
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from gevent.pool import Pool
from gunicorn.http import errors as http_errors
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

from octavo.errors import NotReadyError, OctavoError, RequestError
from octavo.processes import MEMORY_INTERVAL_S, die_with_parent, give_back_memory
from octavo.server.connection import Connection, Listener
from octavo.server.connections import (
    RESERVE,
    BadHttpError,
    Connections,
    TooManyConnectionsError,
    answer_bytes,
    connection_limit,
)
from octavo.server.gunicorn_logger import PROBES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from octavo.server.arbiter import Shared

_TICK_S = 0.05
_CONNECT_TICK_S = 0.01
_NOTIFY_S = 1.0
_LAST_WORDS_S = 2.0  # for error chunks of ended streams to leave
_SEND_BUFFER_BYTES = 256 << 10
_PIECE_BYTES = 64 << 10  # of a long answer: each has the client's whole time to leave
_LINGER_S = 0.2
_DISCARD_S = 5.0  # for a client that sends a body which nobody wants
_GARBAGE = 20_000  # objects between two looks for cycles, of which a request leaves few
_RESET = struct.pack("ii", 1, 0)

_BAD_HTTP = (
    (http_errors.LimitRequestLine, 414),
    (http_errors.LimitRequestHeaders, 431),
    (http_errors.ExpectationFailed, 417),
    (http_errors.ParseException, 400),
    (ssl.SSLError, 400),
)

log = logging.getLogger(__name__)


class Worker(GeventWorker):  # type: ignore[misc]
    """Serves HTTP from one event loop."""

    slot = 0  # this worker's place on the shared pages, set by the arbiter

    def init_process(self) -> None:
        """Let go of what only the arbiter may hold, then start."""
        self._shared: Shared = self.app.octavo
        self._page = self._shared.runtime.page
        self._active = 0  # requests being answered
        self._connections = Connections(connection_limit())
        self._notified = 0.0  # when the arbiter last heard of us
        self._gave_back = 0.0  # when memory was last given back
        with contextlib.suppress(OSError):
            os.close(self._shared.lifeline)
        die_with_parent(self.ppid)
        super().init_process()

    def load_wsgi(self) -> None:
        """Build the app around a client of this server's engine."""
        from octavo.server.assembly import assemble  # noqa: PLC0415 - after gevent's patches
        from octavo.server.request_metrics import RequestMetrics  # noqa: PLC0415
        from octavo.server.shedding import Shedder  # noqa: PLC0415

        shared = self._shared
        metrics = RequestMetrics(shared.metrics, self.slot)
        self._assembly = assemble(shared.config, shared.runtime, metrics)
        self._shedder = Shedder(self._is_full)
        self.wsgi = _in_pieces(self._assembly.app)
        gevent.get_hub().threadpool.spawn(self._load_model)  # a thread proper, not a greenlet

    def _load_model(self) -> None:
        """Read tokenizer and template; a model without them ends the server."""
        try:
            self._assembly.load()
        except OctavoError as error:
            self._page.worker_failed(error.exit_code, str(error))
            os._exit(0)  # the arbiter has read the cause
        except Exception as error:
            log.exception("The tokenizer cannot be loaded")
            self._page.worker_failed(OctavoError.exit_code, f"The tokenizer failed: {error}")
            os._exit(0)  # the arbiter has read the cause
        gc.freeze()  # what loading left is permanent: the collector need not look at it again
        gc.set_threshold(_GARBAGE, 10, 10)
        while not self._assembly.client.is_connected():  # or readiness would be told before it is
            time.sleep(_CONNECT_TICK_S)
        self._page.worker_ready(self.slot, os.getpid())

    # --- Signals ---

    def init_signals(self) -> None:
        """A terminal sends SIGINT to every process; only the arbiter heeds it."""
        super().init_signals()
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: finish what runs, then end."""
        del sig, frame
        self.alive = False

    # --- The loop ---

    def run(self) -> None:
        """Serve until told to end, then finish what runs."""
        while self._is_wanted() and self._is_late():
            self._rest()
        servers = [self._listen(listener) for listener in self.sockets]
        while self._is_wanted():
            self._rest()
        self.alive = False  # from here on every answer closes its connection
        gevent.sleep(_TICK_S)  # a service manager signals all of us: the arbiter may be second
        if not self._page.is_draining:
            for server in servers:  # only this worker ends: others take the connections
                server.close()
        self._finish()
        for server in servers:
            server.stop(timeout=0)
        self._assembly.close()

    def _is_wanted(self) -> bool:
        return self.alive and not self._page.is_draining

    def _is_late(self) -> bool:
        """Others serve already: leave the connections to them until this worker can."""
        count = self._shared.config.api_server_count
        return count > 1 and self._page.has_workers(count) and not self._assembly.model.is_loaded

    def _rest(self) -> None:
        if time.monotonic() - self._notified >= _NOTIFY_S:
            self._notified = time.monotonic()
            self.notify()
        if time.monotonic() - self._gave_back >= MEMORY_INTERVAL_S:
            self._gave_back = time.monotonic()
            gevent.get_hub().threadpool.spawn(give_back_memory)
        gevent.sleep(_TICK_S)

    def _listen(self, listener: Any) -> Listener:
        listener.settimeout(None)
        # Inherited by connections: the kernel would buffer megabytes for a client that is slow.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        arguments: dict[str, Any] = {}
        if self.cfg.is_ssl:  # the handshake waits for handle(), which has a deadline
            arguments = {"ssl_context": ssl_context(self.cfg), "do_handshake_on_connect": False}
        server = Listener(
            listener,
            handle=partial(self.handle, listener),
            spawn=Pool(self._connections.limit + RESERVE),
            **arguments,
        )
        if self.cfg.workers > 1:
            server.max_accept = 1
        server.start()
        return server

    def _finish(self) -> None:
        """Wait for running requests; end those that outlast the time they get."""
        self._wait_idle(self._shared.config.shutdown_timeout)
        if self._active:
            log.warning("Ending %d requests that still run", self._active)
            self._assembly.client.fail_all(NotReadyError("The server is shutting down."))
            self._wait_idle(_LAST_WORDS_S)

    def _wait_idle(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self._active and time.monotonic() < deadline:
            self._rest()

    # --- One connection ---

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve a connection; one that idles is closed when others need its place."""
        try:
            with self._connections.place():
                if self.cfg.is_ssl:
                    client.settimeout(self._shared.config.client_timeout)
                    client.do_handshake()
                if self._refuse_some(client):
                    super().handle(listener, client, addr)
        except OSError as error:
            log.debug("A connection ended before its first request: %s", error)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """What is no HTTP gets our shape of error; a connection that makes room gets nothing."""
        if isinstance(exc, gevent.GreenletExit):
            return
        status = _status_of(exc)
        if status is None:
            super().handle_error(req, client, addr, exc)
        else:
            log.debug("A request that is not HTTP: %s", exc)
            _say(client, BadHttpError(status))

    def handle_request(self, listener_name: Any, req: Any, client: Any, addr: Any) -> None:
        """Answer one request; the last one of its connection while the server drains."""
        if self._page.is_draining:
            self.alive = False
        if not _names_one_host(req):
            _say(client, BadHttpError(400))
            raise StopIteration
        if (refusal := self._shedder.refusal(req.method, req.path, req.headers)) is not None:
            self._refuse(req, client, refusal)
            return
        self._active += 1
        client.settimeout(self._shared.config.client_timeout)
        try:
            with self._connections.busy() as has_place:
                if not has_place and req.path not in PROBES:
                    error = TooManyConnectionsError("The server has too many connections.")
                    _say(client, error)
                    raise StopIteration
                self._answer(listener_name, req, client, addr)
        except TimeoutError:
            # A reset, or the kernel would go on offering what the client does not read.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            raise StopIteration from None  # gunicorn's way to close the connection
        finally:
            self._active -= 1
            client.settimeout(None)  # between requests the keep-alive time-out rules

    def _answer(self, listener_name: Any, req: Any, client: Any, addr: Any) -> None:
        """A body that is too long is not read: what of it comes is thrown away, for a while."""
        if _declared_length(req) <= self._shared.config.max_body_bytes:
            self._answer_at_once(listener_name, req, client, addr)
            return
        req.force_close()
        try:
            self._answer_at_once(listener_name, req, client, addr)
        finally:
            _discard(client)

    def _answer_at_once(self, listener_name: Any, req: Any, client: Any, addr: Any) -> None:
        """Send the head together with the first bytes of the body, which follow at once."""
        if not isinstance(client, Connection):  # TLS
            super().handle_request(listener_name, req, client, addr)
            return
        client.hold()
        try:
            super().handle_request(listener_name, req, client, addr)
        finally:
            client.flush()

    # --- Overload ---

    def _is_full(self) -> bool:
        return self._is_wanted() and self._assembly.client.is_full()

    def _refuse(self, req: Any, client: Any, refusal: bytes) -> None:
        """Answer a request without a look at its body, then the next ones if they are refused."""
        client.settimeout(self._shared.config.client_timeout)
        try:
            client.sendall(refusal)
            while req.body.read(_PIECE_BYTES):
                pass  # the next request begins behind it
            if pipelined := req.unreader.take_buffered():
                req.unreader.unread(pipelined)
            elif req.should_close() or not self._refuse_some(client):
                raise StopIteration
        except TimeoutError:
            raise StopIteration from None
        finally:
            client.settimeout(None)

    def _refuse_some(self, client: Any) -> bool:
        """Refuse requests of a connection that is between two; False if it is over."""
        if not isinstance(client, Connection):  # TLS
            return True
        config = self._shared.config
        return self._shedder.refuse_some(client, self.cfg.keepalive, config.client_timeout)


def _status_of(error: BaseException) -> int | None:
    """The status for what a client sent wrongly; None for any other fault."""
    if isinstance(error, http_errors.InvalidResponseHeader):  # ours, and yet of that family
        return None
    for kind, status in _BAD_HTTP:
        if isinstance(error, kind):
            return status
    return None


def _names_one_host(req: Any) -> bool:
    """As HTTP/1.1 demands; without it proxies and servers can differ about whom they serve."""
    count = sum(name == "HOST" for name, _ in req.headers)
    return bool(count == 1 or (count == 0 and req.version < (1, 1)))


def _declared_length(req: Any) -> int:
    """What gunicorn has found to be a number; 0 where nothing is declared."""
    return next((int(value) for name, value in req.headers if name == "CONTENT-LENGTH"), 0)


def _discard(client: Any) -> None:
    """Read what is still sent, so that the client gets to the answer before the close."""
    deadline = time.monotonic() + _DISCARD_S
    with contextlib.suppress(OSError):
        client.settimeout(_LINGER_S)
        while client.recv(_PIECE_BYTES) and time.monotonic() < deadline:
            pass


def _say(client: Any, error: RequestError) -> None:
    """Send a connection's last answer.

    A close with bytes unread is a reset, which may overtake the answer: so those that are there
    are read.
    """
    from octavo.server.error_responses import error_body  # noqa: PLC0415 - the arbiter needs none

    with contextlib.suppress(OSError):
        client.settimeout(_LINGER_S)
        client.sendall(answer_bytes(error, error_body(error), closes=True))
        client.shutdown(socket.SHUT_WR)
        for _ in range(16):
            if not client.recv(_PIECE_BYTES):
                break


def _in_pieces(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Cut long answers: a send's deadline would hold for all of one, however fast it is read."""

    def cut(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = app(environ, start_response)
        if not isinstance(body, list) or all(len(part) <= _PIECE_BYTES for part in body):
            return body
        return [
            part[i : i + _PIECE_BYTES] for part in body for i in range(0, len(part), _PIECE_BYTES)
        ]

    return cut
