"""Fault 8: clients that read slowly or not at all do not slow others and are dropped in the end."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

from e2e.serving import Server, wait_for
from faults.wire import Baseline, Canary, connect, figures, patience, post

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT_TIMEOUT_S = 2.0  # the shared server's

# Some 1 MB of answer: more than the kernel buffers for a client.
MUCH = {
    "prompt": [5], "max_tokens": 2000, "n": 2, "logprobs": 5, "stream": True, "ignore_eos": True
}  # fmt: skip


def slow_client(server: Server, **fields: object) -> socket.socket:
    connection = connect(server, receive_bytes=4096)
    connection.sendall(post("/v1/completions", {**MUCH, **fields}))
    wait_for(lambda: server.metric("num_requests_running") > 0, "the request")
    return connection


def is_dropped(connection: socket.socket) -> bool:
    """Whether the server has closed it, whatever is still unread here."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return info[0] != 1  # TCP_ESTABLISHED


def wait_dropped(connection: socket.socket) -> float:
    began = time.monotonic()
    wait_for(lambda: is_dropped(connection), "the drop", (CLIENT_TIMEOUT_S + 8) * patience())
    return time.monotonic() - began


def test_a_client_that_reads_nothing(server: Server, before: Baseline) -> None:
    with slow_client(server) as mute:
        took = wait_dropped(mute)
        before.wait()
    figures(8, case="reads nothing", dropped_after_s=round(took, 1))


def test_a_client_that_reads_nothing_of_a_whole_answer(server: Server, before: Baseline) -> None:
    with slow_client(server, stream=False) as mute:
        took = wait_dropped(mute)
        before.wait()
    figures(8, case="reads nothing of a whole answer", dropped_after_s=round(took, 1))


def bytewise(connection: socket.socket) -> Iterator[None]:
    with contextlib.suppress(OSError):  # dropped
        while connection.recv(1):
            yield
            time.sleep(1)


def test_a_client_that_reads_a_byte_a_second(server: Server, before: Baseline) -> None:
    with slow_client(server) as slow:
        reader = threading.Thread(target=lambda: list(bytewise(slow)), daemon=True)
        reader.start()
        took = wait_dropped(slow)
        before.wait()
        reader.join(10)
    figures(8, case="1 byte/s", dropped_after_s=round(took, 1))


def test_a_half_close_counts_as_gone(server: Server, before: Baseline) -> None:
    with slow_client(server) as half:
        half.shutdown(socket.SHUT_WR)
        before.wait()


def test_others_do_not_notice(server: Server, before: Baseline) -> None:
    with Canary(server) as alone:
        time.sleep(1.5)
    alone.check()
    slow = [slow_client(server, n=1, max_tokens=4000) for _ in range(4)]
    wait_for(before.is_back, "their tokens, unread", 60)
    with Canary(server) as beside:
        time.sleep(1.5)
    beside.check()
    for connection in slow:
        connection.close()
    figures(
        8,
        case="others",
        p99_gap_ms_alone=round(alone.gap(0.99), 2),
        p99_gap_ms_beside=round(beside.gap(0.99), 2),
    )
    assert beside.gap(0.99) < 5 * alone.gap(0.99) + 20 * patience()
