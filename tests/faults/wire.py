"""What the tests of faults share: raw connections, a canary stream, and counts to come back to."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2e.serving import Server, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IS_LONG = os.environ.get("OCTAVO_FAULTS") == "long"
ADMIN_KEY = "root"
_FIGURES = os.environ.get("OCTAVO_FAULTS_FIGURES")


def figures(fault: int, **values: object) -> None:
    """Keep what was measured, where somebody wants a table of it."""
    if _FIGURES:
        with Path(_FIGURES).open("a") as file:
            file.write(json.dumps({"fault": fault, **values}) + "\n")


def patience() -> float:
    """How much later than usual this machine gets to things: 1 on one that is not overloaded."""
    worst = 0.0
    for _ in range(10):
        began = time.monotonic()
        time.sleep(0.005)
        worst = max(worst, time.monotonic() - began - 0.005)
    return 1.0 if worst < 0.02 else 10.0


# --- Raw connections -----------------------------------------------------------------------------


def connect(server: Server, timeout: float = 20.0, receive_bytes: int = 0) -> socket.socket:
    connection = socket.socket()
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(timeout)
    connection.connect(("127.0.0.1", server.port))
    return connection


def post(path: str, body: bytes | dict[str, Any], *headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    if not any(line.lower().startswith(("content-length", "transfer-enc")) for line in headers):
        lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join([*lines, "", ""]).encode() + data


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes; a reset is a close."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(1 << 16):
            received += piece
    return received


def statuses(received: bytes) -> list[int]:
    """Of every answer in what was received."""
    return [
        int(line.split()[1])
        for line in received.split(b"\r\n")
        if line.startswith(b"HTTP/1.1 ") and line.split()[1].isdigit()
    ]


# --- Counts --------------------------------------------------------------------------------------


def num_descriptors(server: Server) -> int:
    """Of all processes of the server."""
    total = 0
    for pid in [server.process.pid, *server.children()]:
        with contextlib.suppress(OSError):
            total += len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return total


def counters(server: Server) -> dict[str, float]:
    """The engine's counters, after it has checked its own accounting."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with contextlib.closing(connection):
        connection.request("POST", "/self_check", headers={"X-Api-Key": ADMIN_KEY})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        return dict(json.loads(answer.read()))


@dataclass
class Baseline:
    """What a server that does nothing has, to be found again afterwards."""

    server: Server
    free_blocks: float
    descriptors: int

    def is_back(self) -> bool:
        metric = self.server.metric
        try:
            return (
                metric("num_requests_running") == metric("num_requests_waiting") == 0
                and metric("kv_cache_free_blocks") == self.free_blocks
            )
        except AssertionError:  # the worker has so much to do that the engine's answer came late
            return False

    def wait(self, timeout: float = 1.0) -> float:
        """Seconds until running and waiting requests and blocks are back; counts agree then."""
        began = time.monotonic()
        wait_for(self.is_back, "the state before", timeout * patience())
        took = time.monotonic() - began
        stats = counters(self.server)
        assert stats["num_free_blocks"] == stats["num_blocks"]
        return took

    def wait_descriptors(self, timeout: float = 5.0) -> None:
        wait_for(
            lambda: num_descriptors(self.server) <= self.descriptors,
            f"{self.descriptors} descriptors",
            timeout * patience(),
        )


def baseline(server: Server) -> Baseline:
    wait_for(lambda: server.metric("num_requests_running") == 0, "an idle server")
    stats = counters(server)
    assert stats["num_free_blocks"] == stats["num_blocks"]
    return Baseline(server, stats["num_free_blocks"], num_descriptors(server))


# --- The canary ----------------------------------------------------------------------------------


class Canary:
    """One greedy stream after another; each must say the same, whatever happens beside it.

    Args:
        server: Which it listens to.
        pause_s: Between two streams.

    Attributes:
        gaps: Seconds between its events; may be replaced by an empty list meanwhile.
    """

    BODY = {  # noqa: RUF012
        "prompt": [9, 8, 7], "max_tokens": 64, "temperature": 0, "stream": True,
        "ignore_eos": True, "priority": -1000,
    }  # fmt: skip

    def __init__(self, server: Server, pause_s: float = 0.0) -> None:
        self._server = server
        self._pause_s = pause_s
        self.gaps: list[float] = []
        self.num_streams = 0
        self.faults: list[str] = []
        self._is_over = False
        self._expected = self._read([])
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Canary:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join(60)
        assert not self._thread.is_alive(), "the canary hangs"

    def check(self) -> None:
        """It sang, and always the same song."""
        assert self.num_streams > 0
        assert self.faults == []

    def gap(self, share: float) -> float:
        """Quantile of the gaps, in milliseconds."""
        gaps = sorted(self.gaps) or [0.0]  # none where every answer came in one piece
        return gaps[min(len(gaps) - 1, int(share * len(gaps)))] * 1e3

    def _run(self) -> None:
        while not (self._is_over and self.num_streams):
            self.num_streams += 1
            try:
                text = self._read(self.gaps)
            except (OSError, ValueError, AssertionError) as error:
                text = repr(error)
            if text != self._expected:
                self.faults.append(text)
            time.sleep(self._pause_s)

    def _read(self, gaps: list[float]) -> str:
        with contextlib.closing(connect(self._server, 60)) as connection:
            connection.sendall(post("/v1/completions", self.BODY, "Connection: close"))
            texts, last = [], 0.0
            with connection.makefile("rb") as answer:
                for line in answer:
                    if line.startswith(b"data: {"):
                        now = time.monotonic()
                        if last:
                            gaps.append(now - last)
                        last = now
                        event = json.loads(line[6:])
                        assert "error" not in event, event
                        texts += [choice["text"] for choice in event["choices"]]
            assert texts
            return "".join(texts)


@contextlib.contextmanager
def open_all(count: int, server: Server, data: bytes = b"") -> Iterator[list[socket.socket]]:
    """Many connections at once, each with `data` sent."""
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            opened.append(connect(server))
            if data:
                opened[-1].sendall(data)
        yield opened
    finally:
        for connection in opened:
            connection.close()


def in_threads(count: int, work: Callable[[int], None], timeout: float = 120) -> None:
    """Call work(0) … work(count - 1) at the same time; the first fault is raised."""
    faults: list[BaseException] = []

    def run(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
        assert not thread.is_alive()
    if faults:
        raise faults[0]
