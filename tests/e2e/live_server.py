"""The real server with the demo model, started once for a test module."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

START_TIMEOUT_S = 180.0
SETTLE_S = 5.0


@dataclass
class LiveServer:
    """A running server.

    Attributes:
        url: Where it listens.
        client: Plain HTTP to it.
    """

    url: str
    client: httpx.Client

    def metric(self, name: str) -> float:
        """A sample of /metrics without labels of its own."""
        prefix = f"octavo:{name}{{"
        lines = self.client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(prefix)).rpartition(" ")[2])

    def wait_idle(self, free_blocks: float, timeout: float = SETTLE_S) -> None:
        """Wait until nothing runs and the blocks are back."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            busy = self.metric("num_requests_running") + self.metric("num_requests_waiting")
            free = self.metric("kv_cache_free_blocks")
            if not busy and free == free_blocks:
                return
            time.sleep(0.05)
        raise AssertionError(f"busy {busy}, free blocks {free} of {free_blocks}")


@contextlib.contextmanager
def live_server(*arguments: str) -> Iterator[LiveServer]:
    """Start `octavo serve smollm2` and wait until it is ready."""
    port = _free_port()
    command = [
        sys.executable, "-m", "octavo.cli.main", "serve", "smollm2", "--port", str(port),
        "--kv-cache-memory-bytes", "400MB", "--batch-invariant", *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url, timeout=120) as client:
            _wait_ready(process, client)
            yield LiveServer(url, client)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_ready(process: subprocess.Popen[bytes], client: httpx.Client) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        with contextlib.suppress(httpx.TransportError):
            if client.get("/health").status_code == 200:
                return
        time.sleep(0.2)
    raise AssertionError("the server did not get ready")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
