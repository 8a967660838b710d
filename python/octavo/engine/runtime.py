"""What the processes of one server share: the status page and the socket of the engine."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from octavo.config import runtime_directories
from octavo.engine.status_page import StatusPage
from octavo.errors import ConfigError

_MAX_SOCKET_PATH = 107  # bytes that a sockaddr_un holds
_BACKLOG = 128


@dataclass(frozen=True)
class Runtime:
    """The shared things of one server.

    Attributes:
        page: The status page.
        directory: Private to this user; holds the socket.
        socket_path: Where workers reach the engine.
        listener: Listens there from the start; the engine accepts once it is ready, the next
            engine goes on accepting after a restart.
    """

    page: StatusPage
    directory: Path
    socket_path: str
    listener: socket.socket

    @classmethod
    def create(cls) -> Runtime:
        """Make them.

        Raises:
            ConfigError: No directory can be written.
        """
        directory = _make_directory()
        path = str(directory / "engine")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen(_BACKLOG)
        return cls(StatusPage(), directory, path, listener)

    def remove(self) -> None:
        """Leave nothing behind."""
        self.listener.close()
        os.close(self.page.fd)
        shutil.rmtree(self.directory, ignore_errors=True)


def _make_directory() -> Path:
    tried = runtime_directories()
    for parent in tried:
        try:
            directory = Path(tempfile.mkdtemp(prefix="octavo-", dir=parent))  # mode 0700
        except OSError:
            continue
        if len(os.fsencode(directory / "engine")) <= _MAX_SOCKET_PATH:
            return directory
        directory.rmdir()
    raise ConfigError(f"No directory for sockets can be made in {', '.join(tried)}: set TMPDIR.")
