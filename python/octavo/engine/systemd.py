"""systemd's notification protocol: READY=1, STATUS=…, WATCHDOG=1 as datagrams."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.config import NotifySocket


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
