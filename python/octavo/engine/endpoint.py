"""The engine's side of the socket: HTTP workers connect, submit, and get what their requests make.

Two threads. run() holds a selector over all connections: it accepts, reads frames, submits, and
writes what a slow worker left over. A sender blocks in take_outputs() and writes one Outputs frame
for each worker and step. A worker that goes away has all its requests aborted; one that does not
read is dropped when MAX_BACKLOG_BYTES wait for it, so that it can hold up neither the engine nor
the others.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import selectors
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from octavo.engine.adapter_desk import AdapterDesk
from octavo.engine.framing import FrameBuffer, FrameError, decode, encode
from octavo.engine.grammars import GrammarQueue, MaskMaker
from octavo.engine.protocol import (
    RECORD,
    Abort,
    AbortSequence,
    Adapters,
    Done,
    GetStats,
    ListAdapters,
    Outputs,
    Refused,
    ResetPrefixCache,
    SelfCheck,
    Sleep,
    Stats,
    Submit,
    ToEngine,
    ToWorker,
    WakeUp,
    Welcome,
)
from octavo.errors import EngineError, InvalidRequestError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo.engine.adapters import Adapters as LoadedAdapters
    from octavo.engine.client import ModelInfo
    from octavo.engine.grammars import GrammarCompiler
    from octavo.sampling_params import SamplingParams

MAX_BACKLOG_BYTES = 64 << 20
_RECEIVE_BYTES = 1 << 20
_ACCEPT_RETRY_S = 0.02
_CONNECTION_SHIFT = 48
_MAX_CONNECTIONS = (1 << 16) - 1
_FINISH_REASON = slice(RECORD.size - 4, None, RECORD.size)  # the column of finish reasons
_PEER = struct.Struct("3i")  # pid, uid, gid

log = logging.getLogger(__name__)


class OutputBatch(Protocol):
    """What octavo._core.OutputBatch has."""

    connection: int
    records: bytes
    token_ids: bytes
    logprobs: bytes
    prompt_logprobs: bytes
    pooled: bytes
    errors: dict[int, str]


class Engine(Protocol):
    """What the endpoint needs of octavo._core.Engine, which documents it."""

    def submit(  # noqa: PLR0913, PLR0917 - the extension's own
        self,
        request_id: int,
        token_ids: bytes,
        sampling: Any,
        priority: int = 0,
        cache_salt: int = 0,
        token_mask: bytes | None = None,
        lora_id: int = 0,
    ) -> None:
        """Start a request."""

    def abort(self, request_id: int, sequence_index: int = -1) -> None:
        """Stop a request, or one of its sequences."""

    def take_mask_work(self, timeout_s: float) -> list[tuple[int, int, int]] | None:
        """Wait for tokens of sequences with a grammar; None once shut down."""

    def set_token_masks(self, sequences: list[tuple[int, int]], masks: bytearray) -> None:
        """Give the masks of the tokens that follow."""

    def reset_prefix_cache(self) -> None:
        """Forget cached blocks."""

    def self_check(self) -> None:
        """Check the accounting before the next step."""

    def sleep(self, aborts: bool) -> None:
        """Give the KV cache back when nothing runs any more."""

    def wake_up(self) -> None:
        """Take the KV cache again."""

    def is_full(self) -> bool:
        """A request would be refused now because too many wait."""

    def take_outputs(self, timeout_s: float) -> Sequence[OutputBatch] | None:
        """Wait for outputs; None once shut down."""

    def stats(self) -> dict[str, float]:
        """Counters and gauges."""

    def last_error(self) -> str:
        """Why a step failed, or why the engine ended by itself."""

    def shutdown(self) -> None:
        """Abort what runs, publish the last records, end."""


class _Connection:
    """One worker's connection."""

    def __init__(self, number: int, peer: socket.socket) -> None:
        self.number = number
        self.peer = peer
        self.frames = FrameBuffer()
        self.live: dict[int, int] = {}  # request id to sequences that still run
        self.is_open = True
        self._backlog = bytearray()
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self.peer.fileno()

    def send(self, frame: bytes) -> bool:
        """Send what the socket takes now and keep the rest; False when some is kept."""
        with self._lock:
            if not self._backlog:
                sent = self._try_send(frame)
                if sent == len(frame):
                    return True
                frame = frame[sent:]
            self._backlog += frame
            if len(self._backlog) > MAX_BACKLOG_BYTES:
                raise BrokenPipeError("the worker does not read")
            return False

    def flush(self) -> bool:
        """Send of the rest what the socket takes now; True when nothing is left."""
        with self._lock:
            del self._backlog[: self._try_send(self._backlog)]
            return not self._backlog

    def _try_send(self, data: bytes | bytearray) -> int:
        try:
            return self.peer.send(data)
        except BlockingIOError:
            return 0


class Endpoint:
    """Serves one engine to any number of workers.

    Args:
        engine: Started.
        listener: A listening AF_UNIX socket.
        info: Told to every worker that connects.
        to_sampling: Makes the engine's sampling parameters.
        compiler: For requests with a grammar; None refuses them.
        adapters: Those that requests may name; None refuses all.
    """

    def __init__(
        self,
        engine: Engine,
        listener: socket.socket,
        info: ModelInfo,
        to_sampling: Callable[[SamplingParams], Any],
        compiler: GrammarCompiler | None = None,
        adapters: LoadedAdapters | None = None,
    ) -> None:
        self._engine = engine
        self._listener = listener
        self._info = info
        self._to_sampling = to_sampling
        self._encoder = msgspec.msgpack.Encoder()
        self._sender_encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._numbers = itertools.cycle(range(1, _MAX_CONNECTIONS + 1))
        self._connections: dict[int, _Connection] = {}  # also closed ones whose requests still end
        self._selector = selectors.DefaultSelector()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._to_flush: set[_Connection] = set()
        self._to_close: set[_Connection] = set()
        self._to_refuse: list[tuple[int, RequestError]] = []  # by full id
        self._loaded: list[tuple[int, Done]] = []  # answers by connection number
        self._lock = threading.Lock()  # of _connections, live, _loaded and the _to_ collections
        self._desk = AdapterDesk(adapters, self._answer_later)
        self._masks = MaskMaker(engine, info.vocab_size, self._refuse_later)
        self._grammars = None
        if compiler is not None:
            self._grammars = GrammarQueue(compiler, self._masks, self._refuse_later)
        self._is_stopping = False
        self._failure: str | None = None

    def run(self) -> None:
        """Serve until stop() or until the engine ends.

        Raises:
            EngineError: The engine ended by itself.
        """
        self._listener.settimeout(0)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        sender = threading.Thread(target=self._send_outputs, name="engine-sender")
        sender.start()
        if self._grammars is not None:
            self._masks.start()
            self._grammars.start()
        while not self._is_stopping:
            for key, events in self._selector.select():
                self._handle(key, events)
            self._settle()
        if self._grammars is not None:
            self._grammars.stop()
        self._engine.shutdown()
        sender.join()
        for connection in list(self._connections.values()):
            self._close(connection)
        if self._failure is not None:
            raise EngineError(self._failure)

    def stop(self) -> None:
        """Make run() abort what runs and return. From any thread."""
        self._is_stopping = True
        self._wake()

    def _wake(self) -> None:
        os.eventfd_write(self._wakeup, 1)

    # --- The selector's thread ---

    def _handle(self, key: selectors.SelectorKey, events: int) -> None:
        if key.fileobj is self._listener:
            self._accept()
        elif key.fileobj == self._wakeup:
            os.eventfd_read(self._wakeup)
        else:
            connection: _Connection = key.data
            try:
                if events & selectors.EVENT_WRITE and connection.flush():
                    self._selector.modify(connection, selectors.EVENT_READ, connection)
                if events & selectors.EVENT_READ:
                    self._receive(connection)
            except (OSError, FrameError) as error:
                log.debug("Worker connection %d ended: %s", connection.number, error)
                self._close(connection)

    def _settle(self) -> None:
        """Do what the sender asked for."""
        with self._lock:
            to_flush, self._to_flush = self._to_flush, set()
            to_close, self._to_close = self._to_close, set()
            to_refuse, self._to_refuse = self._to_refuse, []
            loaded, self._loaded = self._loaded, []
        for connection in to_flush - to_close:
            if connection.is_open:
                both = selectors.EVENT_READ | selectors.EVENT_WRITE
                self._selector.modify(connection, both, connection)
        for connection in to_close:
            self._close(connection)
        for full_id, error in to_refuse:
            self._refuse(full_id, error)
        for number, done in loaded:
            self._answer(self._connections.get(number), done, is_news=True)

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:  # gone before it was accepted, or out of descriptors: tried again
            time.sleep(_ACCEPT_RETRY_S)
            return
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        _, uid, _ = _PEER.unpack(credentials)
        if uid not in (os.geteuid(), 0):
            log.warning("Refused a connection of user %d", uid)
            peer.close()
            return
        peer.settimeout(0)
        number = next(n for n in self._numbers if n not in self._connections)
        connection = _Connection(number, peer)
        with self._lock:
            self._connections[number] = connection
        self._selector.register(connection, selectors.EVENT_READ, connection)
        welcome = Welcome(number, *msgspec.structs.astuple(self._info))
        self._reply(connection, welcome)
        self._reply(connection, Adapters(self._desk.cards()))

    def _receive(self, connection: _Connection) -> None:
        data = connection.peer.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("closed by the worker")
        for frame in connection.frames.feed(data):
            if connection.is_open:  # an answer may have found that it is over
                self._dispatch(connection, decode(frame, self._decoder))

    def _dispatch(self, connection: _Connection, message: ToEngine) -> None:
        if isinstance(message, Submit):
            self._submit(connection, message)
        elif isinstance(message, Abort):
            for request_id in message.ids:
                self._abort(connection, connection.number << _CONNECTION_SHIFT | request_id)
        elif isinstance(message, AbortSequence):
            full_id = connection.number << _CONNECTION_SHIFT | message.id
            self._engine.abort(full_id, message.index)
        elif isinstance(message, GetStats):
            self._reply(connection, Stats(message.token, self._engine.stats()))
        elif isinstance(message, ResetPrefixCache | SelfCheck | Sleep | WakeUp):
            self._operate(message)
        else:
            done = self._desk.handle(connection.number, message)
            if done is not None:
                self._answer(connection, done, is_news=not isinstance(message, ListAdapters))

    def _operate(self, message: ResetPrefixCache | SelfCheck | Sleep | WakeUp) -> None:
        if isinstance(message, ResetPrefixCache):
            self._engine.reset_prefix_cache()
        elif isinstance(message, SelfCheck):
            self._engine.self_check()
        elif isinstance(message, Sleep):
            self._engine.sleep(message.aborts)
        else:
            self._engine.wake_up()

    def _answer_later(self, number: int, done: Done) -> None:
        """Have the selector's thread answer a connection. From any thread."""
        with self._lock:
            self._loaded.append((number, done))
        self._wake()

    def _answer(self, requester: _Connection | None, done: Done, *, is_news: bool) -> None:
        """Tell a worker, and the others if there is news, which adapters there are."""
        for connection in list(self._connections.values()):
            if not connection.is_open or not (is_news or connection is requester):
                continue
            self._reply(connection, Adapters(self._desk.cards()))
            if connection is requester:
                self._reply(connection, done)

    def _submit(self, connection: _Connection, message: Submit) -> None:
        full_id = connection.number << _CONNECTION_SHIFT | message.id
        with self._lock:
            connection.live[full_id] = message.sampling.n
        text = message.sampling.grammar
        try:
            if text is None:
                self._enter(full_id, message)
            elif self._grammars is None:
                raise InvalidRequestError("Structured output is not supported here.")
            else:
                enter = functools.partial(self._enter, full_id, message)
                self._grammars.submit(full_id, message.sampling.n, text, enter)
        except RequestError as error:
            self._refuse(full_id, error)

    def _enter(self, full_id: int, message: Submit, token_mask: bytes | None = None) -> None:
        """Hand a request to the engine."""
        lora_id = self._desk.id_of(message.adapter)
        priority, salt = message.priority, message.cache_salt
        try:
            sampling = self._to_sampling(message.sampling)
            self._engine.submit(
                full_id, message.token_ids, sampling, priority, salt, token_mask, lora_id
            )
        except RequestError:  # an InvalidRequestError is a ValueError too
            raise
        except (ValueError, TypeError, OverflowError) as error:
            log.debug("Refused request %d: %s", message.id, error)
            raise InvalidRequestError("A parameter is out of range.") from None

    def _abort(self, connection: _Connection, full_id: int) -> None:
        """Stop a request; one that has not entered the engine leaves no record."""
        if self._grammars is not None and self._grammars.abort(full_id):
            with self._lock:
                connection.live.pop(full_id, None)
        else:
            self._engine.abort(full_id)

    def _refuse(self, full_id: int, error: RequestError) -> None:
        with self._lock:
            connection = self._connections.get(full_id >> _CONNECTION_SHIFT)
            if connection is None or connection.live.pop(full_id, None) is None:
                return
            if not connection.is_open and not connection.live:
                self._connections.pop(connection.number, None)
        if connection.is_open:
            local_id = full_id & ((1 << _CONNECTION_SHIFT) - 1)
            self._reply(connection, Refused(local_id, type(error).__name__, error.message))

    def _refuse_later(self, full_id: int, error: RequestError) -> None:
        """Have the selector's thread refuse a request. From any thread."""
        with self._lock:
            self._to_refuse.append((full_id, error))
        self._wake()

    def _reply(self, connection: _Connection, message: ToWorker) -> None:
        """Send a message; a worker that is gone is no fault of the engine's."""
        try:
            if not connection.send(encode(message, self._encoder)):
                with self._lock:
                    self._to_flush.add(connection)
        except (OSError, FrameError) as error:
            log.debug("Worker connection %d ended: %s", connection.number, error)
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        """Let go of a worker and of all that runs for it."""
        if not connection.is_open:
            return
        connection.is_open = False
        self._selector.unregister(connection)
        connection.peer.close()
        with self._lock:
            live = list(connection.live)
        for full_id in live:
            self._abort(connection, full_id)
        with self._lock:
            if not connection.live:
                self._connections.pop(connection.number, None)

    # --- The sender's thread ---

    def _send_outputs(self) -> None:
        try:
            while (batches := self._engine.take_outputs(1.0)) is not None:
                for batch in batches:
                    self._send_batch(batch)
        except Exception as error:
            log.exception("The engine failed")
            self._failure = str(error) or type(error).__name__
        else:
            if not self._is_stopping:
                self._failure = self._engine.last_error() or "The engine ended unexpectedly."
        self.stop()

    def _send_batch(self, batch: OutputBatch) -> None:
        connection = self._connections.get(batch.connection)
        if connection is None:
            return
        if any(batch.records[_FINISH_REASON]):
            self._count_finished(connection, batch.records)
        if batch.errors:  # clients are not told the cause, it may be about the machine
            log.error("A step failed: %s", self._engine.last_error())
        if not connection.is_open:
            return
        outputs = Outputs(
            batch.records,
            batch.token_ids,
            batch.logprobs,
            batch.prompt_logprobs,
            batch.errors,
            batch.pooled,
            self._engine.is_full(),
        )
        try:
            if connection.send(encode(outputs, self._sender_encoder)):
                return
            kept = self._to_flush
        except (OSError, FrameError) as error:
            log.warning("Dropping worker connection %d: %s", connection.number, error)
            kept = self._to_close
        with self._lock:
            kept.add(connection)
        self._wake()

    def _count_finished(self, connection: _Connection, records: bytes) -> None:
        with self._lock:
            for record in RECORD.iter_unpack(records):
                if not record[-1]:
                    continue
                left = connection.live.get(record[0], 1) - 1
                if left > 0:
                    connection.live[record[0]] = left
                else:
                    connection.live.pop(record[0], None)
            if not connection.is_open and not connection.live:
                self._connections.pop(connection.number, None)
