"""The EngineClient of an HTTP worker: one AF_UNIX connection to the engine process.

Three threads of control (greenlets in a gevent worker) belong to it: the pump connects, decodes
the engine's frames and feeds the streams; the writer sends what the socket has no room for when
submit() and abort() are called, so that neither of them ever blocks, not even in an event-loop
callback; the ticker ends the streams' long waits. A connection that ends fails every running
request and is made again: the engine is restarted by its supervisor.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from octavo import errors
from octavo.engine.client import TICK_S, ModelInfo, RequestOutput, RequestStream, engine_gone
from octavo.engine.columns import Columns, Live
from octavo.engine.framing import FrameBuffer, FrameError, decode, encode, send_now
from octavo.engine.protocol import (
    RECORD,
    Abort,
    AbortSequence,
    Adapters,
    Done,
    GetStats,
    ListAdapters,
    LoadAdapter,
    Outputs,
    Refused,
    ResetPrefixCache,
    SelfCheck,
    Stats,
    Submit,
    ToEngine,
    ToWorker,
    UnloadAdapter,
    Welcome,
)
from octavo.engine.sleep import Sleeper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from octavo.engine.client import AdapterCard, EngineState
    from octavo.engine.status_page import StatusPage
    from octavo.sampling_params import SamplingParams

_LOCAL_ID = (1 << 48) - 1  # the bits of a record's id that this client chose
_RECONNECT_S = 0.05
_FULL_S = 0.1  # how long a full queue is taken to be full still, if no outputs say otherwise
_RECEIVE_BYTES = 256 << 10
_BEHIND_BYTES = 32 << 10  # of many steps: what came of them is better taken together anyway
_BREATH_S = 0.001
_TURN = 64  # streams that are served before new requests get a look-in
_MAX_OUTBOX_BYTES = 256 << 20
_REFUSALS = {
    kind.__name__: kind
    for kind in (
        errors.InvalidRequestError,
        errors.UnknownModelError,
        errors.QueueFullError,
        errors.NotReadyError,
    )
}


class SocketEngineClient:
    """Implements octavo.engine.client.EngineClient.

    Args:
        path: The engine's socket.
        page: The server's status page.
    """

    def __init__(self, path: str, page: StatusPage) -> None:
        self._path = path
        self._page = page
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToWorker)
        self._ids = itertools.count(1)
        self._live: dict[int, Live] = {}
        self._id_of: dict[RequestStream, int] = {}
        self._answers: dict[int, _Answer] = {}
        self._adapters: Mapping[str, AdapterCard] = {}
        self._info: ModelInfo | None = None
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._is_writing = False  # the writer sends what it took from the outbox
        self._outbox_filled = threading.Event()
        self._lock = threading.Lock()  # of _live, _id_of, _outbox, _info; never held over a wait
        self._fed: dict[RequestStream, None] = {}  # those that wait for deliver()
        self._full_until = 0.0
        self._is_closed = False
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Begin to connect. Call after fork, and in a gunicorn worker after gevent's patches."""
        for target in (self._pump, self._write, self._tick):
            name = f"engine-client{target.__name__}"
            threading.Thread(target=target, name=name, daemon=True).start()

    def close(self) -> None:
        """Fail what runs and let go of the engine."""
        self._is_closed = True
        self._outbox_filled.set()
        self._drop_connection()
        self.fail_all(errors.NotReadyError("The server is shutting down."))

    # --- EngineClient ---

    def state(self) -> EngineState:
        """The engine's life now."""
        return self._page.read()

    def is_connected(self) -> bool:
        """The engine has welcomed this client."""
        return self._info is not None

    def model_info(self) -> ModelInfo:
        """Facts of the loaded model."""
        info = self._info
        if info is None:
            raise errors.NotReadyError("The model is not ready yet.")
        return info

    def submit(
        self,
        prompt_token_ids: list[int] | bytes,
        sampling: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: int = 0,
        adapter: str = "",
    ) -> RequestStream:
        """Start a request."""
        self._check_serving()
        if not isinstance(prompt_token_ids, bytes):
            prompt_token_ids = _int32(prompt_token_ids)
        stream = RequestStream(sampling.n, self._abort, self._abort_sequence, is_ticked=True)
        request_id = next(self._ids)
        message = Submit(request_id, prompt_token_ids, sampling, priority, cache_salt, adapter)
        frame = self._frame(message)
        with self._lock:
            self._live[request_id] = Live(stream, sampling)
            self._id_of[stream] = request_id
            self._put(frame)
        return stream

    def stats(self, timeout: float) -> dict[str, float]:
        """Counters and gauges of the engine by name."""
        return self._ask(GetStats, timeout).values

    def adapters(self) -> Mapping[str, AdapterCard]:
        """Those that are loaded, by name, as far as this client knows."""
        return self._adapters

    def refresh_adapters(self, timeout: float) -> None:
        """Ask the engine which are loaded."""
        self._ask(ListAdapters, timeout)

    def load_adapter(self, name: str, path: str, *, replaces: bool, timeout: float) -> None:
        """Load an adapter from below --lora-root."""
        self._ask(lambda token: LoadAdapter(token, name, path, replaces), timeout)

    def unload_adapter(self, name: str, timeout: float) -> None:
        """Refuse new requests for an adapter."""
        self._ask(lambda token: UnloadAdapter(token, name), timeout)

    def _ask(self, message: Callable[[int], ToEngine], timeout: float) -> _Answer:
        """Send a message that has an answer, and wait for it."""
        self.model_info()
        token, answer = next(self._ids), _Answer()
        self._answers[token] = answer
        try:
            with self._lock:
                self._put(self._frame(message(token)))
            if not answer.arrived.wait(timeout):
                raise errors.EngineFaultError("The engine did not answer in time.")
            if answer.error is not None:
                raise answer.error
            return answer
        finally:
            del self._answers[token]

    def reset_prefix_cache(self) -> None:
        """Forget every cached block that nobody holds."""
        self._tell(ResetPrefixCache())

    def self_check(self) -> None:
        """Have the engine check its own accounting."""
        self._tell(SelfCheck())

    def sleep(self, level: int, patience_s: float) -> None:
        """Free memory until wake_up()."""
        Sleeper(self._page, self._tell, self.stats).sleep(level, patience_s)

    def wake_up(self) -> None:
        """End a sleep."""
        Sleeper(self._page, self._tell, self.stats).wake_up()

    # --- For the worker ---

    def is_full(self) -> bool:
        """The engine would refuse a request, as far as is known here, because too many wait."""
        return time.monotonic() < self._full_until

    @property
    def num_live(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    def fail_all(self, error: errors.RequestError) -> None:
        """End every running request with an error, and in the engine too."""
        with self._lock:
            live, self._live = self._live, {}
            self._id_of = {}
            if live and self._info is not None:
                self._put(self._frame(Abort(list(live))))
        for each in live.values():
            each.stream.fail(error)

    # --- Sending ---

    def _tell(self, message: ToEngine) -> None:
        self.model_info()
        with self._lock:
            self._put(self._frame(message))

    def _check_serving(self) -> None:
        state = self._page.read()
        if state.is_draining:
            raise errors.NotReadyError("The server is shutting down.")
        if state.sleep_level:
            raise errors.NotReadyError("The server is asleep.")
        if not state.is_alive or self._info is None:
            raise errors.NotReadyError("The model is not ready.")
        if self._outbox_bytes > _MAX_OUTBOX_BYTES:
            raise errors.QueueFullError("Too many requests wait already.")

    def _abort(self, stream: RequestStream) -> None:
        with self._lock:
            request_id = self._id_of.pop(stream, None)
            if request_id is not None:
                self._live.pop(request_id, None)
                self._put(self._frame(Abort([request_id])))

    def _abort_sequence(self, stream: RequestStream, index: int) -> None:
        with self._lock:
            request_id = self._id_of.get(stream)
            if request_id is not None:
                self._live[request_id].stopped.add(index)
                self._put(self._frame(AbortSequence(request_id, index)))

    def _frame(self, message: ToEngine) -> bytes:
        try:
            return encode(message, self._encoder)
        except FrameError:
            raise errors.InvalidRequestError("The prompt is too large.") from None

    def _put(self, frame: bytes) -> None:
        """Send a frame as far as the socket takes it at once; the rest is the writer's.

        Requires: _lock is held.
        """
        if not self._outbox and not self._is_writing and self._socket is not None:
            frame = frame[send_now(self._socket, frame) :]
            if not frame:
                return
        self._outbox.append(frame)
        self._outbox_bytes += len(frame)
        self._outbox_filled.set()

    def _write(self) -> None:
        while not self._is_closed:
            self._outbox_filled.wait()
            self._outbox_filled.clear()
            with self._lock:
                frames, self._outbox = self._outbox, deque()
                self._outbox_bytes = 0
                connection = self._socket
                self._is_writing = connection is not None and bool(frames)
            if connection is None or not frames:
                continue
            try:
                connection.sendall(b"".join(frames))
            except OSError:
                self._drop_connection()
            self._is_writing = False

    def _tick(self) -> None:
        while not self._is_closed:
            time.sleep(TICK_S)
            now = time.monotonic()
            for live in list(self._live.values()):
                live.stream.tick(now)

    # --- Receiving ---

    def _pump(self) -> None:
        while not self._is_closed:
            with (
                contextlib.suppress(OSError),  # no descriptor is left
                socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
            ):
                # The engine is gone or went mad: either way this connection is over.
                with contextlib.suppress(OSError, FrameError):
                    connection.connect(self._path)
                    self._serve(connection)
                self._lose_connection()  # before it is closed: nobody may send to it any more
            time.sleep(_RECONNECT_S)

    def _serve(self, connection: socket.socket) -> None:
        """Receive until the engine goes away."""
        self._socket = connection
        buffer, received = FrameBuffer(), memoryview(bytearray(_RECEIVE_BYTES))
        while size := connection.recv_into(received):
            for frame in buffer.feed(received[:size]):
                self._dispatch(decode(frame, self._decoder))
            self._deliver()
            # recv() gives way only where it waits, and a busy engine has always sent more.
            time.sleep(_BREATH_S if size >= _BEHIND_BYTES else 0)

    def _deliver(self) -> None:
        """Let the streams send what all frames brought that had come: of each, all in one."""
        fed, self._fed = self._fed, {}
        for count, stream in enumerate(fed, start=1):
            stream.deliver()
            if count % _TURN == 0:
                time.sleep(0)

    def _dispatch(self, message: ToWorker) -> None:
        if isinstance(message, Outputs):
            self._feed(message)
        elif isinstance(message, Refused):
            kind = _REFUSALS.get(message.kind, errors.EngineFaultError)
            if kind is errors.QueueFullError:
                self._full_until = time.monotonic() + _FULL_S
            self._fail(message.id, kind(message.message))
        elif isinstance(message, Stats):
            if answer := self._answers.get(message.token):
                answer.values = message.values
                answer.arrived.set()
        elif isinstance(message, Done):
            self._settle(message)
        elif isinstance(message, Adapters):
            self._adapters = {card.name: card for card in message.cards}
        elif isinstance(message, Welcome):
            self._info = ModelInfo(message.vocab_size, message.max_model_len, message.hidden_size)

    def _settle(self, done: Done) -> None:
        """Wake whoever asked for it."""
        answer = self._answers.get(done.token)
        if answer is None:
            return
        if done.kind:
            kind = _REFUSALS.get(done.kind, errors.EngineFaultError)
            answer.error = kind(done.message, param=done.param)
        answer.arrived.set()

    def _feed(self, outputs: Outputs) -> None:
        """Hand each record to its stream. The hottest loop of a worker: once a token."""
        self._full_until = time.monotonic() + _FULL_S if outputs.is_full else 0.0
        columns = Columns(outputs)
        live_of = self._live.get
        for record in RECORD.iter_unpack(outputs.records):
            live = live_of(record[0] & _LOCAL_ID)
            output = columns.take(record, live)
            if live is None:
                continue  # aborted here while this record was on its way
            if output.finish_reason is None:
                if live.stream.feed(output):
                    self._fed[live.stream] = None
            else:
                self._finish(record[0] & _LOCAL_ID, live, output, outputs.errors.get(record[0]))

    def _finish(
        self, request_id: int, live: Live, output: RequestOutput, message: str | None
    ) -> None:
        """Feed the last output of a sequence."""
        if output.finish_reason == "error":
            error = errors.EngineFaultError(message or "The engine failed.")
            self._fail(request_id, error)
        elif output.finish_reason == "abort" and output.sequence_index not in live.stopped:
            self._fail(request_id, self._why_aborted())  # not by this client
        else:
            if live.stream.feed(output):
                self._fed[live.stream] = None
            if live.stream.is_ended:
                self._forget(request_id)

    def _why_aborted(self) -> errors.RequestError:
        if self._page.sleep_level:
            return errors.NotReadyError("The server was put to sleep.")
        return engine_gone()

    def _fail(self, request_id: int, error: errors.RequestError) -> None:
        if live := self._forget(request_id):
            live.stream.fail(error)

    def _forget(self, request_id: int) -> Live | None:
        with self._lock:
            live = self._live.pop(request_id, None)
            if live is not None:
                self._id_of.pop(live.stream, None)
        return live

    def _drop_connection(self) -> None:
        """Make the pump notice that the connection is over."""
        if connection := self._socket:
            with contextlib.suppress(OSError):  # the peer was faster
                connection.shutdown(socket.SHUT_RDWR)

    def _lose_connection(self) -> None:
        with self._lock:
            self._socket = self._info = None
            self._outbox.clear()
            self._outbox_bytes = 0
        self.fail_all(engine_gone())
        for answer in list(self._answers.values()):
            answer.error = engine_gone()
            answer.arrived.set()


class _Answer:
    """Where the answer to GetStats and its like arrives."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.error: errors.RequestError | None = None
        self.arrived = threading.Event()


def _int32(token_ids: list[int]) -> bytes:
    try:
        return array.array("i", token_ids).tobytes()
    except OverflowError:
        raise errors.InvalidRequestError("A token id is out of range.") from None
