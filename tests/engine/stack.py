"""SocketEngineClient and Endpoint, over a real socket, with a FakeEngine behind."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fakes.fake_core import MAX_MODEL_LEN, VOCAB_SIZE, FakeEngine
from octavo.engine.adapters import Adapters
from octavo.engine.client import ModelInfo
from octavo.engine.endpoint import Endpoint
from octavo.engine.socket_client import SocketEngineClient
from octavo.errors import EngineError
from octavo.sampling_params import SamplingParams

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from octavo.engine.client import RequestStream
    from octavo.engine.status_page import StatusPage

WAIT_S = 20.0


def wait_for(condition: Callable[[], object], what: str = "the condition") -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.005)


@dataclass
class Stack:
    """An engine with its endpoint, and clients of it."""

    path: str
    page: StatusPage
    engine: FakeEngine
    endpoint: Endpoint
    listener: socket.socket
    thread: threading.Thread
    clients: list[SocketEngineClient]
    failures: list[BaseException]

    def connect(self) -> SocketEngineClient:
        client = SocketEngineClient(self.path, self.page)
        client.start()
        self.clients.append(client)
        wait_for(client.is_connected, "the connection")
        return client

    def stop(self) -> None:
        self.endpoint.stop()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


def make_stack(listener: socket.socket, path: str, page: StatusPage, **engine: Any) -> Stack:
    compiler, base = engine.pop("compiler", None), engine.pop("base", None)
    roots = engine.pop("roots", ())
    fake = FakeEngine(**engine)
    fake.start()
    info = ModelInfo(VOCAB_SIZE, MAX_MODEL_LEN)
    adapters = Adapters(fake, base, ("base",), roots)
    endpoint = Endpoint(fake, listener, info, lambda s: s, compiler, adapters)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            endpoint.run()
        except EngineError as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return Stack(path, page, fake, endpoint, listener, thread, [], failures)


def tokens_of(stream: RequestStream) -> list[int]:
    return [token for output in stream for token in output.token_ids]


def params(max_tokens: int, **fields: object) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, **fields)  # type: ignore[arg-type]
