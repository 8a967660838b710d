"""systemd's notification protocol: READY=1, STATUS=…, WATCHDOG=1 as datagrams."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class NotifySocket:
    """How systemd wants to hear from a service.

    Attributes:
        path: Datagram socket; a leading @ is an abstract one.
        watchdog_s: Longest silence, 0 if there is no watchdog.
    """

    path: str
    watchdog_s: float


def take_notify_socket() -> NotifySocket | None:
    """The service manager's socket, removed from the environment.

    gunicorn would announce itself as ready there as soon as it listens.
    """
    path = os.environ.pop("NOTIFY_SOCKET", "")
    watchdog_us = os.environ.pop("WATCHDOG_USEC", "")
    os.environ.pop("WATCHDOG_PID", None)
    if not path:
        return None
    return NotifySocket(path, int(watchdog_us) / 1e6 if watchdog_us.isdecimal() else 0.0)


class Notifier:
    """Speaks to the service manager; silent without its socket.

    Args:
        notify: systemd's socket, if it started us.
    """

    def __init__(self, notify: NotifySocket | None) -> None:
        self._notify = notify
        self._beat_at = 0.0

    def send(self, text: str) -> None:
        """Say something; a deaf service manager is no fault of ours."""
        if self._notify is None:
            return
        path = self._notify.path
        if path.startswith("@"):
            path = "\0" + path[1:]
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection,
        ):
            connection.sendto(text.encode(), path)

    def beat(self) -> None:
        """Keep the watchdog quiet, twice as often as it asks."""
        if self._notify is None or not self._notify.watchdog_s:
            return
        now = time.monotonic()
        if now - self._beat_at >= self._notify.watchdog_s / 2:
            self._beat_at = now
            self.send("WATCHDOG=1")
